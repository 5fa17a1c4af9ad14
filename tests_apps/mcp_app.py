"""A server of the Model Context Protocol. MCP_MODE: streamable HTTP without state, with sessions, or event streams."""

import os

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("Tools")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
async def slowly(steps: int, ctx: Context) -> str:
    """Report each step."""
    for step in range(1, steps + 1):
        await ctx.report_progress(step, steps)
    return f"{steps} steps done"


@server.resource("greeting://{name}")
def greeting(name: str) -> str:
    """Return a greeting."""
    return f"hello {name}"


@server.prompt()
def review(code: str) -> str:
    """Ask for a review."""
    return f"Please review {code}"


@server.tool()
def worker() -> int:
    """Return the process."""
    return os.getpid()


match os.environ.get("MCP_MODE"):
    case "events":
        app = server.sse_app()
    case "sessions":
        app = server.streamable_http_app()
    case _:
        app = server.streamable_http_app(stateless_http=True)
