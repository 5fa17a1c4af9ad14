"""Rules for the modules that mypyc compiles, which hold for the sources without a compiler."""

import ast
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def compiled_modules() -> list[Path]:
    setup = ast.parse((ROOT / "setup.py").read_text())
    listed = next(
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED"
    )
    paths = []
    for line in listed.split():
        folder, _, names = line.rstrip("}").partition("{")
        paths += [ROOT / f"{folder}{name}.py" for name in names.split(",")]
    return paths


MODULES = compiled_modules()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def classes() -> set[str]:
    return {node.name for path in MODULES for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_variable_is_for_exceptions_of_one_type(path: Path) -> None:
    for function in ast.walk(parsed(path)):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        caught: defaultdict[str, set[str]] = defaultdict(set)
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and node.name and node.type:
                caught[node.name].add(ast.unparse(node.type))
        for name, types in caught.items():
            compiled = [each for each in types if classes() & set(each.strip("()").split(", "))]
            assert len(types) == 1 or not compiled, f"{function.name}: mypyc gives {name!r} one type"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_waits_while_it_handles_an_exception(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        handling: list[ast.stmt] = []
        if isinstance(node, ast.ExceptHandler):
            handling = node.body
        elif isinstance(node, ast.Try):
            handling = node.finalbody
        waits = [each for statement in handling for each in ast.walk(statement) if isinstance(each, ast.Await)]
        assert not waits, f"line {waits[0].lineno}: all other tasks would have the exception, too"
        if isinstance(node, ast.AsyncWith):
            manager = ast.unparse(node.items[0].context_expr)
            assert "task_group" not in manager, f"line {node.lineno}: its end waits while it handles an exception"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_result_of_gathered_calls_is_not_a_tuple(path: Path) -> None:
    tree = parsed(path)
    unused = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Await) and node not in unused and isinstance(node.value, ast.Call):
            gathers = ast.unparse(node.value.func) == "asyncio.gather"
            starred = all(isinstance(argument, ast.Starred) for argument in node.value.args)
            assert starred or not gathers, f"line {node.lineno}: mypyc expects a tuple, and gets a list"


def annotations(tree: ast.AST) -> set[str]:
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.returns)
    return {name.id for each in found if each for name in ast.walk(each) if isinstance(name, ast.Name)}


def aliases(tree: ast.Module) -> set[str]:
    """Return the names of a module for what other packages have: `RedisError = hiredis.ReplyError`."""
    packages = {each.name for node in tree.body if isinstance(node, ast.Import) for each in node.names}
    packages -= sys.stdlib_module_names
    return {
        ast.unparse(node.targets[0])
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Attribute)
        and ast.unparse(node.value.value) in packages
    }


@cache
def all_aliases() -> set[str]:
    return {name for path in MODULES for name in aliases(parsed(path))}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_type_is_an_alias_of_a_type_of_another_package(path: Path) -> None:
    wrong = all_aliases() & annotations(parsed(path))
    assert not wrong, f"{wrong} is no type where asgibus is built, without the packages that it needs"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_reads_the_slots_of_a_class(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        reads = isinstance(node, ast.Attribute) and node.attr in ("__slots__", "__dict__")
        assert not reads, f"line {node.lineno}: a compiled class has neither __slots__ nor __dict__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_index_is_a_named_slice(path: Path) -> None:
    tree = parsed(path)
    slices = {
        ast.unparse(node.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.value).startswith("slice(")
    }
    for node in ast.walk(tree):
        named = isinstance(node, ast.Subscript) and ast.unparse(node.slice) in slices
        assert not named, f"line {node.lineno}: mypyc expects a number as the index of bytes"
