"""The hints for mypyc that the code needs, without its package: installed, asgibus may be pure Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**hints):
        """Return a decorator that leaves a class as it is. mypyc reads the hints when it compiles the class.

        Args:
            hints: `native_class=False` for an exception, since mypyc cannot inherit from most of the built-in ones;
                `allow_interpreted_subclasses=True` for a base of classes of others.
        """
        return lambda cls: cls


__all__ = ["mypyc_attr"]
