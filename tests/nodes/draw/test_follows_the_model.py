"""Domain KSampler draws as suits the model where nothing is typed, and nothing is connected to start from."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.tiny import tiny_model, tiny_prompts

LEFT = {"steps": 0, "cfg": 0.0, "sampler_name": "automatic", "scheduler": "automatic"}
TYPED = {"steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}


@pytest.fixture
def drawn(nodes, monkeypatch):
    """Return a function that draws on a model which suits small images, and gives the latents."""
    family = type(nodes("nodes.host.families").FAMILIES["stable diffusion"])
    drawing = nodes("nodes.host.families.base").Drawing
    suits = {"steps": 2, "cfg": 2.0, "sampler": "euler", "scheduler": "normal"}
    monkeypatch.setattr(family, "drawing", drawing(size=64, origin="a test", **suits))
    words = tiny_prompts(nodes).first

    def draw(**inputs):
        node = nodes("nodes.draw.sampling").DomainGalleryKSampler
        fixed = {"mode": "none", "enhancement": 0.0, "seed": 5, "denoise": 1.0}
        with torch.inference_mode():
            return node.execute(tiny_model(), words.target, words.empty, **fixed, **inputs)[0]["samples"]

    return draw


def test_what_is_left_to_the_model_is_what_suits_it(drawn):
    empty = {"samples": torch.zeros(1, 4, 8, 8)}

    assert torch.equal(drawn(**LEFT), drawn(**TYPED, latent_image=empty))


@pytest.mark.parametrize("name", TYPED)
def test_what_is_typed_stays(drawn, name):
    other = {"steps": 3, "cfg": 4.0, "sampler_name": "heun", "scheduler": "simple"}[name]

    found = drawn(**LEFT | {name: other})

    assert torch.equal(found, drawn(**TYPED | {name: other}))
    assert not torch.equal(found, drawn(**LEFT))
