"""What cannot be enhanced is refused before the first step, and what is doubtful is said on the node."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.nodes.draw.drawing import WAYS, alone, draw, latent, patched, predict, predict_with, rows_of
from tests.nodes.draw.formula import close, directions
from tests.nodes.tiny import conditioning

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "V"}, "mode to be one of none, V-uncond, VN-N, got 'V'"),
        ({"enhancement": NAN}, "enhancement to be a finite number from -10 to 10, got nan"),
        ({"start_percent": NAN}, "start_percent to be a finite number from 0 to 1, got nan"),
        ({"end_percent": 1.5}, r"end_percent to be a finite number from 0 to 1, got 1\.5"),
        ({"rescale": INF}, "rescale to be a finite number from 0 to 1, got inf"),
        ({"start_percent": 0.6, "end_percent": 0.4}, "start_percent up to end_percent, got 0.6 and 0.4"),
        ({"prompts": None}, "prompts or base for the mode VN-N, got neither"),
        ({"base": []}, "base conditioning, got an empty one"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_work_is_refused_before_the_first_step(
    nodes, errors, model, prompts, domain, way, changes, message
):
    enhancement = {"mode": "VN-N", "enhancement": 0.7, "prompts": domain} | changes

    def run():
        with pytest.raises(errors.InputError, match=message):
            draw(nodes, way, model, prompts.target, prompts.empty, latent(), enhancement)

    assert rows_of(model, run)[1] == []


def test_a_scale_that_is_not_a_number_is_refused(nodes, errors, model, prompts):
    with pytest.raises(errors.InputError, match="cfg to be a finite number from 0 to 100, got inf"):
        draw(
            nodes, "Domain KSampler", model, prompts.target, prompts.empty, latent(),
            {"mode": "none", "enhancement": 0.0}, cfg=INF,
        )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_prompts_of_another_text_encoder_are_refused(nodes, errors, model, prompts, way):
    """Of another model family, or with a pooled embedding of another width."""
    wide = [[torch.zeros(1, 6, 24), {}]]
    pooled = conditioning(3, pooled=8)
    enhancement = {"mode": "VN-N", "enhancement": 0.7}

    with pytest.raises(errors.InputError, match=r"text encoder of this model \(16 wide\), got 24"):
        draw(nodes, way, model, prompts.target, prompts.empty, latent(), enhancement | {"base": wide})
    with pytest.raises(errors.InputError, match="from one text encoder, got 8 and 5 numbers for a prompt"):
        positive = conditioning(4, pooled=5)
        draw(nodes, way, model, positive, positive, latent(), enhancement | {"base": pooled})


def test_a_guider_without_a_negative_is_refused_where_the_mode_reads_it(
    nodes, errors, model, prompts, domain
):
    custom = importlib.import_module("comfy_extras.nodes_custom_sampler")

    def guider(mode):
        made = custom.Guider_Basic(patched(nodes, model, mode=mode, enhancement=0.7, prompts=domain))
        made.set_conds(prompts.target)
        return made

    found, rows = predict_with(guider("VN-N"))
    close(found, alone(model, prompts.target) + 0.7 * directions(model, prompts)["VN-N"])
    assert rows == [2]
    with pytest.raises(errors.InputError, match="guider with a negative conditioning, got one without"):
        predict_with(guider("V-uncond"))


def test_notes_are_shown_on_the_node(nodes, model, prompts, domain, said):
    """A model without a LoRA; a prompt without the identifier. Both are allowed."""
    options = {"mode": "VN-N", "enhancement": 0.7, "prompts": domain}
    enhanced = patched(nodes, model, **options)
    assert not said, "a LoRA may be applied after the patch"
    predict(enhanced, prompts.source, prompts.empty, cfg=3.0)
    assert len(said) == 2 and "no LoRA" in said[0]
    assert "the same as the positive" in said[1] and "identifier" in said[1]

    key = "diffusion_model.out.2.weight"
    enhanced = enhanced.clone()
    enhanced.add_patches({key: ("diff", (torch.zeros_like(model.model.state_dict()[key]),))})
    predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    assert len(said) == 2

    draw(nodes, "Domain KSampler", model, prompts.target, prompts.empty, latent(), options | {"mode": "none"})
    assert len(said) == 3 and "no LoRA" in said[2]
