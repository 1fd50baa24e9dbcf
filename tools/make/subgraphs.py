"""Build a subgraph: a graph that is one node of others, with the inputs, widgets and outputs of its own."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from ..host.graphs import widget_slots
from .workflow_graph import Graph, Node, Socket, specs_of

ENTRANCE, EXIT = -10, -20  # the host's ids of where links come in and go out
MARGIN = 240  # from these to the nodes
FIRST = 101  # id of a node in a subgraph; the host gives others to those that are taken around it


@dataclass(frozen=True)
class Entry:
    """An input of a subgraph: a socket, or the widget of a node in it.

    Attributes:
        spec: as the host describes the input of a node.
        value: what a widget begins with.
    """

    name: str
    spec: list[Any]
    value: Any = None
    label: str = ""

    @property
    def kind(self) -> str:
        return "COMBO" if isinstance(self.spec[0], list) else self.spec[0]


@dataclass
class Subgraph(Graph):
    """A subgraph under construction; what it is made of is added as to any graph.

    Args:
        category: where the host's menu has it.
    """

    category: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()
    entries: list[Entry] = field(default_factory=list)
    exits: list[tuple[str, Socket]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = FIRST
        self.entrance = Node(ENTRANCE, "", "", {"output": [], "output_name": []}, {}, [])

    @property
    def id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"domaingallery/subgraph/{self.name}"))

    def socket(self, name: str, kind: str) -> Socket:
        """Add an input that something is linked to."""
        return self._enter(Entry(name, [kind, {}]))

    def widget(self, name: str, type: str, of: str, value: Any, *, label: str = "") -> Socket:
        """Add an input like the widget `of` of nodes of a type, to be linked to those of some here."""
        return self._enter(Entry(name, specs_of(self.info[type])[of], value, label))

    def output(self, name: str, socket: Socket) -> None:
        self.exits.append((name, socket))

    def as_node(self) -> dict[str, Any]:
        """Return what the host would say of it, were it a node."""
        return {
            "input": {"required": {e.name: [e.spec[0], *_with_default(e)] for e in self.entries}},
            "output": [socket.node.info["output"][socket.slot] for _, socket in self.exits],
            "output_name": [name for name, _ in self.exits],
            "display_name": self.name,
            "subgraph": self,
        }

    def definition(self) -> dict[str, Any]:
        """Return it as a workflow's definitions have it; each node must have been placed."""
        for node in self.nodes:
            slots = [name for name, _ in widget_slots(node.info, node.widgets)] if node.info else []
            for name, source in node.links.items():
                if source.node is self.entrance and name in slots:
                    node.widgets[slots.index(name)] = self.entries[source.slot].value
        graph = self.to_json()
        links = [dict(zip(_LINK, link, strict=True)) for link in graph["links"]]
        of_outputs = []
        for slot, (_, socket) in enumerate(self.exits):
            number, kind = len(links) + 1, socket.node.info["output"][socket.slot]
            links.append(
                dict(zip(_LINK, (number, socket.node.id, socket.slot, EXIT, slot, kind), strict=True))
            )
            graph["nodes"][self.nodes.index(socket.node)]["outputs"][socket.slot]["links"].append(number)
            of_outputs.append(number)
        left, right = self._sides()
        return {
            "id": self.id,
            "version": 1,
            "state": {
                "lastGroupId": len(graph["groups"]),
                "lastNodeId": graph["last_node_id"],
                "lastLinkId": len(links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": ENTRANCE, "bounding": [left, 0, 160, 40 + 20 * len(self.entries)]},
            "outputNode": {"id": EXIT, "bounding": [right, 0, 160, 40 + 20 * len(self.exits)]},
            "inputs": [
                self._slot("in", entry.name, entry.kind, [link["id"] for link in links if (
                    link["origin_id"], link["origin_slot"]) == (ENTRANCE, slot)], left + 140, slot)
                | ({"label": entry.label} if entry.label else {})
                for slot, entry in enumerate(self.entries)
            ],
            "outputs": [
                self._slot("out", name, socket.node.info["output"][socket.slot], [number], right + 20, slot)
                for slot, ((name, socket), number) in enumerate(zip(self.exits, of_outputs, strict=True))
            ],
            "widgets": [],
            "nodes": graph["nodes"],
            "groups": graph["groups"],
            "links": links,
            "extra": {},
            "category": self.category,
            "description": self.description,
        }  # fmt: skip

    def blueprint(self, version: str) -> dict[str, Any]:
        """Return the file of a blueprint: a workflow that is nothing but the subgraph's node."""
        root = Graph(self.name, {self.id: self.as_node()}, version, checks_links=False)
        node = root.node(self.id, title=self.name)
        node.width = 400
        extra = {"BlueprintDescription": self.description, "BlueprintSearchAliases": list(self.aliases)}
        return root.to_json() | {"extra": extra}

    def _enter(self, entry: Entry) -> Socket:
        self.entries.append(entry)
        self.entrance.info["output"].append(entry.kind)
        self.entrance.info["output_name"].append(entry.name)
        return Socket(self.entrance, len(self.entries) - 1)

    def _slot(self, way: str, name: str, kind: str, links: list[int], x: int, slot: int) -> dict[str, Any]:
        number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"domaingallery/{self.name}/{way}/{name}"))
        return {"id": number, "name": name, "type": kind, "linkIds": links, "pos": [x, 20 + 20 * slot]}

    def _sides(self) -> tuple[int, int]:
        """Return where the nodes of the entrance and the exit stand."""
        first = min(node.position[0] for node in self.nodes)
        last = max(node.position[0] + node.width for node in self.nodes)
        return first - MARGIN - 160, last + MARGIN


_LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def _with_default(entry: Entry) -> list[dict[str, Any]]:
    options = entry.spec[1] if len(entry.spec) > 1 and entry.spec[1] else {}
    return [options if entry.value is None else {**options, "default": entry.value}]
