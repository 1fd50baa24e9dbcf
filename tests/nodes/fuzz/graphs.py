"""Graphs that are looked at before they run: links anywhere, in circles too, and values of any kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.nodes.fuzz.running import Fuzz
from tests.nodes.fuzz.values import NUMBERS, TEXTS, Made

IDS = [str(number) for number in range(8)]
OTHERS = ["PrimitiveInt", "PrimitiveString", "EmptyImage", "LoadImage", "KSampler", "NoSuchNode", ""]


def graphs(fuzz: Fuzz) -> SearchStrategy[Any]:
    """Return graphs of the pack's nodes, and others, with an id of one that runs."""

    def node(kind: str) -> SearchStrategy[dict[str, Any]]:
        schema = fuzz.classes[kind].define_schema() if kind in fuzz.classes else None
        names = [part.id for part in schema.inputs] if schema else ["value", "image", "model"]
        link = st.tuples(st.sampled_from(IDS), st.integers(0, 4)).map(list)
        plain = st.one_of(NUMBERS, TEXTS).filter(lambda value: not isinstance(value, Made))
        good = {part.id: fuzz.good(part) for part in schema.inputs} if schema else {}
        usual = {name: value for name, value in good.items() if not isinstance(value, Made)}
        values = [
            st.one_of(link, plain, st.just(usual[name])) if name in usual else st.one_of(link, link, plain)
            for name in names
        ]
        inputs = st.fixed_dictionaries({}, optional=dict(zip(names, values, strict=True)))
        return inputs.map(lambda given: {"class_type": kind, "inputs": usual | given})

    kinds = st.sampled_from([*fuzz.classes, *OTHERS])
    return st.tuples(
        st.dictionaries(st.sampled_from(IDS), kinds.flatmap(node), min_size=1), st.sampled_from(IDS)
    )


def look(fuzz: Fuzz, graph: tuple[dict[str, Any], str]) -> tuple[str, str]:
    """Look ahead in a graph, all of whose nodes are to run."""
    preflight = fuzz.nodes("nodes.ahead.preflight")
    node = SimpleNamespace(hidden=SimpleNamespace(prompt=graph[0], unique_id=graph[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "running_outputs", list)
        return fuzz.ended(lambda: preflight.check_ahead(node, {}))
