"""A training that the user ends early to go on with what it has learned: a button of web/stop.js."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

PATH = "/domaingallery/stop"

#: Nodes that train, by their ids, and whether each has been asked to end. One trains at a time.
_asked: dict[str, bool] = {}


@contextmanager
def stoppable(node: str | None) -> Iterator[Callable[[], bool]]:
    """Give what tells whether the training on a node has been asked to end."""
    key = node or ""
    _asked[key] = False
    try:
        yield lambda: _asked[key]
    finally:
        del _asked[key]


def ask_to_stop(node: str) -> bool:
    """Ask the training on a node to end after its step; return whether there is one.

    Args:
        node: its id in the graph that is shown, which is the last part of its id inside subgraphs.
    """
    found = [key for key in _asked if key.rpartition(":")[2] == node]
    for key in found:
        _asked[key] = True
    return bool(found)


def serve() -> None:
    """Let the host's server take the requests of the button."""
    from server import PromptServer  # a server exists only where the host runs as one

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.post(PATH)
    async def stop(request: web.Request) -> web.Response:
        try:
            node = (await request.json())["node"]
        except (ValueError, TypeError, KeyError):
            return web.json_response({"error": "Expected the id of a node."}, status=400)
        return web.json_response({"stopped": ask_to_stop(str(node))})
