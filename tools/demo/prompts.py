"""Change prompts in API format: keep a part, seed all of it, ask for several variants at once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from typing import Any

from ..host.graphs import GraphError, Prompt, find_by_title, set_by_title

Changes = dict[str, dict[str, Any]]  # node title -> inputs


def derived_seed(seed: int, *names: object) -> int:
    """Return a seed of 32 bits that depends on another seed and on what it is for."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def seeded(prompt: Prompt, seed: int, name: str) -> Prompt:
    """Return a prompt in which each seed is derived from one seed, its name and the node's title."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        title = node["_meta"]["title"]
        key = "value" if title == "Seed" else "seed"
        if isinstance(node["inputs"].get(key), int):
            node["inputs"][key] = derived_seed(seed, name, title)
    return prompt


def only(prompt: Prompt, titles: Iterable[str]) -> Prompt:
    """Return what the nodes with these titles need, and them."""
    kept, wanted = set(), [find_by_title(prompt, title) for title in titles]
    while wanted:
        node = wanted.pop()
        if node not in kept:
            kept.add(node)
            wanted += [source for source, _ in _links(prompt[node])]
    return {node: prompt[node] for node in prompt if node in kept}


def changed(prompt: Prompt, changes: Changes) -> Prompt:
    """Return a prompt with other inputs in the nodes with these titles."""
    prompt = copy.deepcopy(prompt)
    for title, inputs in changes.items():
        set_by_title(prompt, title, **inputs)
    return prompt


def variants(prompt: Prompt, all_changes: list[Changes]) -> Prompt:
    """Return one prompt that does what several changed ones would; what is common to all is done once.

    The nodes of variant i that are changed, or come after one that is, are named `variant_id(id, i)`.

    Raises:
        GraphError: a variant changes nothing.
    """
    merged: Prompt = {}
    for i, changes in enumerate(all_changes):
        if not changes:
            raise GraphError(f"variant {i} changes nothing")
        variant = changed(prompt, changes)
        touched = {find_by_title(variant, title) for title in changes}
        while grown := {
            node
            for node in variant.keys() - touched
            if any(source in touched for source, _ in _links(variant[node]))
        }:
            touched |= grown
        for node, content in variant.items():
            inputs = {
                name: [variant_id(value[0], i), value[1]]
                if _is_link(value) and value[0] in touched
                else value
                for name, value in content["inputs"].items()
            }
            merged[variant_id(node, i) if node in touched else node] = {**content, "inputs": inputs}
    return merged


def variant_id(node: str, variant: int) -> str:
    return f"{node}-{variant}"


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


def _links(node: dict[str, Any]) -> list[list[Any]]:
    return [value for value in node["inputs"].values() if _is_link(value)]
