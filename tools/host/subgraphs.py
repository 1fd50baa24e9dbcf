"""Unpack the subgraphs of a workflow, as the front end does when it queues them."""

from __future__ import annotations

from typing import Any

from .graphs import PRIMITIVE, GraphError, Workflow

ENTRANCE, EXIT = "-10", "-20"  # the host's ids of where links of a subgraph come in and go out
#: Subgraphs in subgraphs are unpacked so far.
DEEPEST = 100

Id = int | str


def unpacked(workflow: Workflow) -> Workflow:
    """Return a workflow with the nodes of its subgraphs in their place; node 3 of node 10 is "10:3".

    Raises:
        GraphError: a subgraph is in itself.
    """
    known = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
    for _ in range(DEEPEST):
        if not any(node["type"] in known for node in workflow["nodes"]):
            return {key: value for key, value in workflow.items() if key != "definitions"}
        workflow = _Unpacking(workflow, known).workflow
    raise GraphError(f"expected subgraphs in at most {DEEPEST} others, got one that is in itself")


class _Unpacking:
    """Put the nodes of each subgraph in the place of its node, one level deep."""

    def __init__(self, workflow: Workflow, known: dict[str, dict[str, Any]]) -> None:
        self.known = known
        self.links = [list(link) for link in workflow["links"]]
        self.nodes: list[dict[str, Any]] = []
        self.ends: dict[tuple[str, int], tuple[Id, int]] = {}  # output of a subgraph's node: what gives it
        for node in workflow["nodes"]:
            if node["type"] in known:
                self._unpack(node, known[node["type"]], {link[0]: link for link in workflow["links"]})
            else:
                self.nodes.append({**node, "inputs": [dict(slot) for slot in node.get("inputs", [])]})
        for link in self.links:
            while (end := self.ends.get((str(link[1]), link[2]))) is not None:
                link[1], link[2] = end
        ids = {node["id"] for node in self.nodes}
        self.links = [link for link in self.links if link[3] in ids]
        for order, node in enumerate(self.nodes):
            node["order"] = order
        self.workflow = {**workflow, "nodes": self.nodes, "links": self.links}

    def _unpack(self, node: dict[str, Any], inner: dict[str, Any], outer: dict[int, list[Any]]) -> None:
        place = f"{node['id']}:"
        entries = self._entries(node, inner, outer)
        number: dict[int, int] = {}
        for link in inner["links"]:
            slot = link["origin_slot"]
            if str(link["origin_id"]) != ENTRANCE:
                origin: Id = f"{place}{link['origin_id']}"
            elif slot in entries:
                origin, slot = entries[slot]
            else:
                continue
            if str(link["target_id"]) == EXIT:
                self.ends[str(node["id"]), link["target_slot"]] = (origin, slot)
            else:
                number[link["id"]] = max((each[0] for each in self.links), default=0) + 1
                target = place + str(link["target_id"])
                self.links.append(
                    [number[link["id"]], origin, slot, target, link["target_slot"], link["type"]]
                )
        for one in sorted(inner["nodes"], key=lambda one: one.get("order", 0)):
            inputs = [{**slot, "link": number.get(slot.get("link"))} for slot in one.get("inputs", [])]
            mode = node.get("mode", 0) or one.get("mode", 0)
            self.nodes.append({**one, "id": place + str(one["id"]), "inputs": inputs, "mode": mode})

    def _entries(
        self, node: dict[str, Any], inner: dict[str, Any], outer: dict[int, list[Any]]
    ) -> dict[int, tuple[Id, int]]:
        """Return what comes in at each input: the output of a node, or a primitive with a widget's value."""
        values = list(node.get("widgets_values") or [])
        given = {slot["name"]: slot for slot in node.get("inputs", [])}
        found: dict[int, tuple[Id, int]] = {}
        for slot, entry in enumerate(inner["inputs"]):
            one = given.get(entry["name"], {})
            value = values.pop(0) if "widget" in one and values else None
            if one.get("link") is not None:
                _, origin, place, *_ = outer[one["link"]]
                found[slot] = (origin, place)
            elif value is not None:
                primitive = f"{node['id']}:-{slot}"
                self.nodes.append(
                    {"id": primitive, "type": PRIMITIVE, "inputs": [], "widgets_values": [value]}
                )
                found[slot] = (primitive, 0)
        return found
