"""Turn a saved workflow (UI format 0.4) into a prompt for the host (API format), as its front end does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Workflow = dict[str, Any]
Prompt = dict[str, dict[str, Any]]

MUTED, BYPASSED = 2, 4  # a node's `mode`
NOTES = {"Note", "MarkdownNote"}
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"  # these exist in the front end only
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGET_TYPES = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "COLOR", "MARKDOWN", "TEXTAREA", DYNAMIC_COMBO}
UPLOADS = ("image_upload", "video_upload", "animated_image_upload")


class GraphError(ValueError):
    """A workflow does not fit the host's node types."""


def workflow_to_api(workflow: Workflow, object_info: dict[str, Any]) -> Prompt:
    """Return the prompt of a workflow.

    Muted nodes and notes are left out, bypassed nodes and reroutes are seen through. A linked widget gives
    its link, a widget that the file does not mention its default. `{a|b}` in a text stays as it is. Subgraphs
    must have been unpacked, see subgraphs.py.

    Args:
        object_info: the host's answer to /object_info.

    Raises:
        GraphError: an unknown node type, too many widget values, or a link that leads nowhere.
    """
    graph = _Graph(workflow)
    prompt: Prompt = {}
    for node in sorted(workflow["nodes"], key=lambda node: node.get("order", 0)):
        kind = node["type"]
        if kind in NOTES | {REROUTE, PRIMITIVE} or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            raise GraphError(f"expected a node type that the host knows, got {kind!r} (node {node['id']})")
        inputs = _widget_inputs(node, object_info[kind])
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                source = graph.source(slot["link"], slot["type"])
                if source is not None:
                    inputs[slot["name"]] = source
        title = node.get("title") or object_info[kind].get("display_name") or kind
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": kind, "_meta": {"title": title}}
    return prompt


def set_by_title(prompt: Prompt, title: str, **inputs: object) -> None:
    """Set inputs of the one node with this title.

    Raises:
        GraphError: no node has the title, or several, or the node has no such input.
    """
    node = prompt[find_by_title(prompt, title)]
    unknown = inputs.keys() - node["inputs"].keys()
    if unknown:
        raise GraphError(f"node {title!r} has no input {sorted(unknown)}; it has {sorted(node['inputs'])}")
    node["inputs"].update(inputs)


def find_by_title(prompt: Prompt, title: str) -> str:
    """Return the id of the one node with this title.

    Raises:
        GraphError: no node has it, or several.
    """
    found = [node for node, content in prompt.items() if content["_meta"]["title"] == title]
    if len(found) != 1:
        titles = sorted(content["_meta"]["title"] for content in prompt.values())
        raise GraphError(f"expected one node with the title {title!r}, found {len(found)} among {titles}")
    return found[0]


def widget_slots(node_info: dict[str, Any], values: list[Any] | None = None) -> list[tuple[str | None, Any]]:
    """Return (input name, default) of each entry of a node's `widgets_values`.

    The name is None where the front end stores a value that the host never sees: the control after a seed, or
    the upload button. What a dynamic combo adds depends on its choice in `values`.
    """
    inputs, values = node_info.get("input", {}), values or []
    slots: list[tuple[str | None, Any]] = []
    for part in ("required", "optional"):
        specs = inputs.get(part, {})
        order = node_info.get("input_order", {}).get(part, list(specs))
        for name in order:
            slots.extend(_slots(name, specs[name], values, len(slots)))
        if part == "required" and any(_options(spec).get(key) for spec in specs.values() for key in UPLOADS):
            slots.append((None, "image"))
    return slots


def _slots(name: str, spec: list[Any], values: list[Any], position: int) -> Iterator[tuple[str | None, Any]]:
    kind, options = spec[0], _options(spec)
    if isinstance(kind, list):  # the older form of a combo
        options, kind = {"options": kind, **options}, "COMBO"
    kind = options.get("widgetType", kind)
    if kind not in WIDGET_TYPES or options.get("forceInput"):
        return
    if kind == DYNAMIC_COMBO:
        choices = {choice["key"]: choice["inputs"] for choice in options["options"]}
        default = next(iter(choices))
        chosen = values[position] if position < len(values) else default
        yield name, default
        taken = 1
        for part in ("required", "optional"):
            for key, inner in choices.get(chosen, {}).get(part, {}).items():
                added = list(_slots(f"{name}.{key}", inner, values, position + taken))
                taken += len(added)
                yield from added
        return
    yield name, options.get("default", _default(kind, options))
    # the front end gives a control to seeds that do not say whether they want one
    if options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed")):
        yield None, "randomize"
        if kind == "COMBO":
            yield None, ""  # the control's filter


def _default(kind: str, options: dict[str, Any]) -> Any:
    if kind == "COMBO":
        choices = options.get("options") or [None]
        return [] if options.get("multiselect") else choices[0]
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "")


def _options(spec: list[Any]) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 and spec[1] else {}


def _widget_inputs(node: dict[str, Any], node_info: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a node's widgets by input name."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        named = {name: values.get(name, default) for name, default in widget_slots(node_info) if name}
    else:
        slots = widget_slots(node_info, values)
        if len(values) > len(slots):
            expected = [name or "-" for name, _ in slots]
            raise GraphError(
                f"node {node['id']} ({node['type']}): expected up to {len(slots)} widget values {expected}, "
                f"got {len(values)}: {values!r}"
            )
        padded = [*values, *(default for _, default in slots[len(values) :])]
        named = {name: value for (name, _), value in zip(slots, padded, strict=True) if name}
    # a bare list would look like a link
    return {name: {"__value__": value} if isinstance(value, list) else value for name, value in named.items()}


class _Graph:
    """The links of a workflow, seen through the nodes that the host does not get."""

    def __init__(self, workflow: Workflow) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {link[0]: link for link in workflow["links"]}  # [id, from, slot, to, slot, type]

    def source(self, link_id: int, wanted: str) -> Any:
        """Return what a link brings to an input of type `wanted`: [node id, slot], a value, or None."""
        seen = set()
        while link_id is not None:
            if link_id in seen:
                raise GraphError(f"link {link_id} is part of a loop")
            seen.add(link_id)
            if link_id not in self.links or self.links[link_id][1] not in self.nodes:
                raise GraphError(f"link {link_id} leads nowhere")
            _, origin, slot, *_ = self.links[link_id]
            node = self.nodes[origin]
            if node.get("mode", 0) == MUTED or node["type"] in NOTES:
                return None
            if node["type"] == PRIMITIVE:
                return node["widgets_values"][0]
            if node["type"] == REROUTE:
                link_id = node["inputs"][0].get("link")
            elif node.get("mode", 0) == BYPASSED:
                link_id = self._passed(node, slot, wanted)
            else:
                return [str(origin), slot]
        return None

    def _passed(self, node: dict[str, Any], slot: int, wanted: str) -> Any:
        """Return the link that a bypassed node passes on: that of the same slot if it fits, else by type."""
        inputs = node.get("inputs", [])
        if wanted == "*":
            index = slot if slot < len(inputs) else 0
            return inputs[index].get("link") if inputs else None
        produced = node["outputs"][slot]["type"]
        if (
            slot < len(inputs)
            and _fits(inputs[slot]["type"], produced)
            and _fits(inputs[slot]["type"], wanted)
        ):
            return inputs[slot].get("link")
        exact = [entry for entry in inputs if entry["type"] == wanted]
        fitting = [
            entry for entry in inputs if _fits(entry["type"], produced) and _fits(entry["type"], wanted)
        ]
        return next((entry.get("link") for entry in exact + fitting), None)


def _fits(one: str, other: str) -> bool:
    """Tell whether two socket types connect; a type may be a list such as "INT,FLOAT"."""
    if "*" in (one, other):
        return True
    return bool(set(one.lower().split(",")) & set(other.lower().split(",")))
