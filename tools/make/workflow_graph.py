"""Build a workflow (UI format 0.4) from node types and named inputs, each checked against the host."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from gallery import HOST_VERSION

from ..host.graphs import DYNAMIC_COMBO, WIDGET_TYPES, GraphError, Workflow, widget_slots
from .workflow_layout import Group, frame

PACK_PREFIX = "DomainGallery"
NOTE = "MarkdownNote"
NOTE_WIDTH = 420
BLOCK = re.compile(r"[#|]|- |\d+\. ")  # begins a heading, a table row, a list entry
AUTOGROW = "COMFY_AUTOGROW_V3"
FILES = {"lora_name", "ckpt_name", "folder"}  # choices that depend on what is on a disk

GREEN, BLUE, BROWN, PURPLE, GREY = (
    ("#232", "#353"), ("#223", "#335"), ("#432", "#653"), ("#323", "#535"), ("#222", "#333"),
)  # fmt: skip


@dataclass(frozen=True)
class Socket:
    """An output of a node."""

    node: Node
    slot: int


@dataclass
class Node:
    """A node of a workflow; `node["clip"]` is its output of that name, in any case."""

    id: int
    type: str
    title: str
    info: dict[str, Any]
    links: dict[str, Socket]  # by input name
    widgets: list[Any]
    colour: tuple[str, str] | None = None
    width: int = 320
    tall: int = 0  # extra height, for pictures and long texts
    position: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str) -> Socket:
        names = [name.lower() for name in self.info["output_name"]]
        if output.lower() not in names:
            raise GraphError(f"{self.type} has no output {output!r}; it has {names}")
        return Socket(self, names.index(output.lower()))

    @property
    def height(self) -> int:
        """Return how tall the front end draws the node, without its title."""
        sockets = len(sockets_of(self.info)) if self.info else 0
        rows = max(sockets, len(self.info.get("output_name", [])))
        return 16 + 20 * rows + 24 * len(self.widgets) + self.tall


@dataclass
class Graph:
    """A workflow under construction.

    Args:
        info: the host's answer to /object_info.
        version: the pack's.
        checks_links: whether required inputs must be linked.
        first: the id of the first node.
    """

    name: str
    info: dict[str, Any]
    version: str
    nodes: list[Node] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    checks_links: bool = True
    first: int = 1

    def node(
        self,
        type: str,
        *,
        title: str = "",
        colour: tuple[str, str] | None = None,
        control: str = "fixed",
        wide: int = 320,
        tall: int = 0,
        **inputs: Any,
    ) -> Node:
        """Add a node; inputs are outputs of other nodes or values of widgets, the rest keep their defaults.

        Args:
            control: what happens to a seed after each run: "fixed", "randomize", ...
            wide, tall: the width in the front end, and height for pictures and long texts.

        Raises:
            GraphError: the host has no such node, input or choice, or a required input is not linked.
        """
        if type not in self.info:
            raise GraphError(f"the host has no node {type!r}")
        info = as_shown(self.info[type], inputs)
        sockets, specs = sockets_of(info), specs_of(info)
        slots = widget_slots(info)
        widgets = {name for name, _ in slots if name}
        if unknown := inputs.keys() - sockets.keys() - widgets:
            known = sorted(sockets.keys() | widgets)
            raise GraphError(f"{type} has no input {sorted(unknown)}; it has {known}")
        links = {name: value for name, value in inputs.items() if isinstance(value, Socket)}
        missing = [n for n, optional in sockets.items() if not optional and n not in links]
        if missing and self.checks_links:
            raise GraphError(f"{type} ({title}): required inputs {missing} are not linked")
        values = []
        for name, default in slots:
            if name is None:
                values.append(control if default == "randomize" else default)
            elif name in inputs and name not in links:
                values.append(checked(type, name, inputs[name], specs[name]))
            else:
                values.append(default)
        node = Node(self.first + len(self.nodes), type, title, info, links, values, colour, wide, tall)
        self.nodes.append(node)
        return node

    def note(self, title: str, text: str) -> Node:
        """Add a note in Markdown."""
        text = unwrapped(text)
        lines = [22 * (1 + len(line) // 80) if line.startswith("|") else 15 * (1 + len(line) // 80)
                 for line in text.splitlines()]  # fmt: skip
        node = Node(
            self.first + len(self.nodes), NOTE, title, {}, {}, [text], BROWN, NOTE_WIDTH, 50 + sum(lines)
        )
        self.nodes.append(node)
        return node

    def group(self, title: str, *columns: list[Node], colour: str = "#3f789e") -> Group:
        group = Group(title, [column for column in columns if column], colour)
        self.groups.append(group)
        return group

    def to_json(self) -> Workflow:
        """Return the workflow; each node must have been placed."""
        links: list[list[Any]] = []
        outgoing: dict[tuple[int, int], list[int]] = {}
        incoming_of: list[dict[str, int]] = []
        for node in self.nodes:
            incoming = {}
            for name, source in node.links.items():
                kind = source.node.info["output"][source.slot]
                names = [*sockets_of(node.info), *(n for n in node.links if n not in sockets_of(node.info))]
                if subgraph := node.info.get("subgraph"):
                    names = [entry.name for entry in subgraph.entries]
                links.append([len(links) + 1, source.node.id, source.slot, node.id, names.index(name), kind])
                outgoing.setdefault((source.node.id, source.slot), []).append(len(links))
                incoming[name] = len(links)
            incoming_of.append(incoming)
        subgraphs = {node.type: node.info["subgraph"] for node in self.nodes if "subgraph" in node.info}
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"domaingallery/{self.name}")),
            "revision": 0,
            "last_node_id": self.first + len(self.nodes) - 1,
            "last_link_id": len(links),
            "nodes": [
                self._node(order, node, incoming, outgoing)
                for order, (node, incoming) in enumerate(zip(self.nodes, incoming_of, strict=True))
            ],
            "links": links,
            "groups": [frame(i, group) for i, group in enumerate((g for g in self.groups if g.title), 1)],
            **(
                {"definitions": {"subgraphs": [s.definition() for s in subgraphs.values()]}}
                if subgraphs
                else {}
            ),
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [60, 120]}},
            "version": 0.4,
        }

    def _node(
        self, order: int, node: Node, incoming: dict[str, int], outgoing: dict[tuple[int, int], list[int]]
    ) -> dict[str, Any]:
        inputs: list[dict[str, Any]] = []
        specs = specs_of(node.info) if node.info else {}
        sockets = sockets_of(node.info) if node.info else {}
        for name, optional in sockets.items():
            entry = {"name": name, "type": specs[name][0], "link": incoming.get(name)}
            inputs.append({**entry, "shape": 7} if optional else entry)
        for name in (name for name in incoming if name not in sockets):
            kind = specs[name][0]
            kind = "COMBO" if isinstance(kind, list) else kind
            inputs.append({"name": name, "type": kind, "widget": {"name": name}, "link": incoming[name]})
        if subgraph := node.info.get("subgraph"):  # has all of its inputs here, in their order
            known = {entry["name"]: entry for entry in inputs}
            inputs = [
                known.get(e.name, {"name": e.name, "type": e.kind, "widget": {"name": e.name}, "link": None})
                | ({"label": e.label} if e.label else {})
                for e in subgraph.entries
            ]
        result: dict[str, Any] = {
            "id": node.id,
            "type": node.type,
            "pos": list(node.position),
            "size": [node.width, node.height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": [
                {"name": name, "type": kind, "links": outgoing.get((node.id, slot), [])}
                for slot, (name, kind) in enumerate(
                    zip(node.info.get("output_name", []), node.info.get("output", []), strict=True)
                )
            ],
            "properties": self._properties(node),
            "widgets_values": node.widgets,
        }
        if node.title:
            result["title"] = node.title
        if node.colour:
            result["color"], result["bgcolor"] = node.colour
        return result

    def _properties(self, node: Node) -> dict[str, str]:
        """Return what "install missing nodes" reads."""
        if node.type == NOTE:
            return {}
        if "subgraph" in node.info:
            return {"cnr_id": "domaingallery", "ver": self.version}
        ours = node.type.startswith(PACK_PREFIX)
        return {
            "cnr_id": "domaingallery" if ours else "comfy-core",
            "ver": self.version if ours else HOST_VERSION,
            "Node name for S&R": node.type,
        }


def as_shown(info: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what the host says of a node with the inputs that the front end shows once some are given.

    An input that grows has one place more than is linked; a choice with inputs of its own has those of its
    option.
    """
    shown: dict[str, dict[str, Any]] = {}
    for part, specs in info["input"].items():
        for name, spec in specs.items() if part in ("required", "optional") else ():
            if spec[0] == AUTOGROW:
                template = spec[1]["template"]
                [inner] = template["input"]["required"].values()
                taken = sum(given.startswith(f"{name}.") for given in inputs)
                for i in range(max(template.get("min", 0), taken) + 1):
                    shown.setdefault("optional", {})[f"{name}.{template['prefix']}{i}"] = inner
            elif spec[0] == DYNAMIC_COMBO:
                choices = {choice["key"]: choice["inputs"] for choice in spec[1]["options"]}
                chosen = inputs.get(name, next(iter(choices)))
                plain = {**spec[1], "options": [*choices], "default": chosen}
                shown.setdefault(part, {})[name] = ["COMBO", plain]
                # Its widgets stand below the choice, whether they are optional or not.
                for place, nested in choices.get(chosen, {}).items():
                    for key, inner in nested.items():
                        kept = place if is_socket(inner) else part
                        shown.setdefault(kept, {})[f"{name}.{key}"] = inner
            else:
                shown.setdefault(part, {})[name] = spec
    return {**info, "input": shown, "input_order": {part: [*specs] for part, specs in shown.items()}}


def specs_of(info: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the specification of each input."""
    return {n: s for part in ("required", "optional") for n, s in info["input"].get(part, {}).items()}


def is_socket(spec: list[Any]) -> bool:
    """Tell whether an input is no widget."""
    widget = isinstance(spec[0], list) or spec[0] in WIDGET_TYPES
    return not widget or bool(len(spec) > 1 and spec[1].get("forceInput"))


def sockets_of(info: dict[str, Any]) -> dict[str, bool]:
    """Return the inputs that are not widgets: name -> whether it is optional."""
    optional = info.get("input", {}).get("optional", {})
    found = {}
    for name, spec in specs_of(info).items() if info else ():
        if is_socket(spec):
            found[name] = name in optional
    return found


def checked(type: str, name: str, value: Any, spec: list[Any]) -> Any:
    """Return a widget's value; raises GraphError if the host would refuse it."""
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    if choices is not None and name not in FILES and value not in choices:
        raise GraphError(f"{type}: {name} is one of {choices}, got {value!r}")
    low, high = options.get("min", value), options.get("max", value)
    if not isinstance(value, str) and not low <= value <= high:
        raise GraphError(f"{type}: {name} is between {low} and {high}, got {value!r}")
    return value


def unwrapped(markdown: str) -> str:
    """Join the lines of each paragraph and list entry, as the front end would break them a second time."""
    lines: list[str] = []
    for line in markdown.strip().splitlines():
        begins = not lines or not line or not lines[-1] or BLOCK.match(line) or lines[-1].startswith("#")
        lines.append(line) if begins else lines.append(f"{lines.pop()} {line}")
    return "\n".join(lines)
