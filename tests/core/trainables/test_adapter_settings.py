"""What can be set of an adapter, and what is the paper's."""

from __future__ import annotations

from said import explained, said

from domaingallery_core.settings import Setting
from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.kinds import KINDS


def test_an_adapter_is_the_papers_unless_it_is_said_otherwise():
    """App. A: LoRA of rank 4 and alpha 4 on the attention projections."""
    assert said(AdapterSettings) == {
        "rank": (4, Setting(least=1, most=1024)),
        "alpha": (4.0, Setting(least=0.01, most=1e9, step=0.5)),
        "targets": ("attention", Setting()),
        "dropout": (0.0, Setting(most=0.99, step=0.05)),
        "kind": ("lora", Setting(choices=KINDS, label="adapter")),
    }
    assert explained(AdapterSettings) == said(AdapterSettings).keys()
