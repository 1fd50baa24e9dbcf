"""How much memory a run has taken, in bytes on every system."""

from __future__ import annotations

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from domaingallery_core.run.memory import peak_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(("system", "expected"), [("linux", 3 * 1024), ("darwin", 3)])
def test_the_peak_is_in_bytes_whatever_the_system_counts_in(monkeypatch, system, expected):
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3))
    monkeypatch.setattr(sys, "platform", system)

    assert peak_memory(CPU) == expected


def test_without_a_way_to_know_there_is_no_peak(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)

    assert peak_memory(CPU) is None
