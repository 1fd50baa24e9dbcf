"""The graph of nodes that a node runs in, as far as it tells values before those nodes run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_execution.graph import get_input_info
from comfy_execution.graph_utils import is_link

import nodes as host_nodes

#: Nodes of the host that only hold a value.
PRIMITIVES = {
    "PrimitiveInt",
    "PrimitiveFloat",
    "PrimitiveString",
    "PrimitiveStringMultiline",
    "PrimitiveBoolean",
}


class Unknown:
    """Stand for a value that only running the graph tells."""


UNKNOWN = Unknown()


@dataclass(frozen=True, slots=True, eq=False)
class GraphNode:
    """Hold a node of a graph: its id and class, what the user calls it, and its inputs."""

    id: str
    kind: str
    title: str
    inputs: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.title} (node {self.id})"


class PromptGraph:
    """Read a prompt in the host's API format.

    Args:
        outputs: the ids of the output nodes that are run; None for all.
    """

    def __init__(self, prompt: Mapping[str, Any], outputs: Iterable[str] | None = None) -> None:
        self.nodes = {id: _node(id, content) for id, content in prompt.items()}
        if outputs is None:
            outputs = [id for id, node in self.nodes.items() if _is_output(node.kind)]
        self._run = self._upstream(outputs)

    def later(self, id: str) -> list[GraphNode]:
        """Return a node and those after it that are sure to run."""
        found, waiting = {id}, [id]
        after: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for source, _, _ in _links(node):
                after.setdefault(source, []).append(node.id)
        while waiting:
            fresh = set(after.get(waiting.pop(), ())) - found
            found |= fresh
            waiting += fresh
        return [node for node in self.nodes.values() if node.id in found & self._run]

    def source(self, node: GraphNode, name: str) -> tuple[GraphNode, int] | None:
        """Return the node and the output that an input is linked to; None if it is not."""
        value = node.inputs.get(name)
        return (self.nodes[value[0]], value[1]) if is_link(value) else None

    def root(self, node: GraphNode, name: str) -> GraphNode:
        """Return where an input comes from, behind all nodes that have one of this name themselves."""
        seen = {node.id}
        while (linked := self.source(node, name)) is not None and linked[0].id not in seen:
            node = linked[0]
            seen.add(node.id)
        return node

    def value(self, node: GraphNode, name: str, default: Any = None) -> Any:
        """Return the value of a widget, or UNKNOWN where it comes from a node that computes it."""
        linked = self.source(node, name)
        if linked is not None:
            return self.value(linked[0], "value", UNKNOWN) if linked[0].kind in PRIMITIVES else UNKNOWN
        value = node.inputs.get(name, default)
        return value.get("__value__", UNKNOWN) if isinstance(value, dict) else value

    def values(self, node: GraphNode, schema: Any) -> dict[str, Any] | None:
        """Return the values of all inputs of a node that takes no links; None if one is not known yet."""
        found = {part.id: self.value(node, part.id, part.default) for part in schema.inputs}
        return None if UNKNOWN in found.values() else found

    def _upstream(self, outputs: Iterable[str]) -> set[str]:
        """Return the nodes that the outputs cannot do without, lazy inputs left aside."""
        found: set[str] = set()
        waiting = [id for id in outputs if id in self.nodes]
        while waiting:
            id = waiting.pop()
            found.add(id)
            sources = {
                source for source, _, name in _links(self.nodes[id]) if _is_needed(self.nodes[id], name)
            }
            waiting += sources - found
        return found & self.nodes.keys()


def _node(id: str, content: Mapping[str, Any]) -> GraphNode:
    kind = content["class_type"]
    title = (content.get("_meta") or {}).get("title") or _display_name(kind)
    return GraphNode(id, kind, str(title), content.get("inputs", {}))


def _display_name(kind: str) -> str:
    return host_nodes.NODE_DISPLAY_NAME_MAPPINGS.get(kind, kind)


def _links(node: GraphNode) -> Iterator[tuple[str, int, str]]:
    for name, value in node.inputs.items():
        if is_link(value):
            yield value[0], value[1], name


def _is_output(kind: str) -> bool:
    return bool(getattr(host_nodes.NODE_CLASS_MAPPINGS.get(kind), "OUTPUT_NODE", False))


def _is_needed(node: GraphNode, name: str) -> bool:
    """Tell whether a node asks for an input in any case; a lazy one, such as a switch has, it may not."""
    kind = host_nodes.NODE_CLASS_MAPPINGS.get(node.kind)
    if kind is None:
        return False
    _, _, more = get_input_info(kind, name)
    return more is not None and not more.get("lazy", False)
