"""Enhancement with other patches, guiders and latents: it adds the last summand of Eq. 6 and nothing else."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.nodes.draw.drawing import (
    WAYS,
    alone,
    draw,
    ksampler,
    latent,
    patched,
    predict,
    predict_with,
    rows_of,
)
from tests.nodes.draw.formula import CFG, MODES, STRENGTH, close, compare, lora_hooks
from tests.nodes.tiny import conditioning, host_module, tiny_model

# patches of the guidance


def patch_of(name, model):
    """Return a MODEL with a stock patch on it, and whether the patch evaluates the positive once more."""
    if name == "RescaleCFG":
        node = importlib.import_module("comfy_extras.nodes_model_advanced").RescaleCFG
        return node().patch(model, 0.7)[0]
    module, options = {
        "PerturbedAttentionGuidance": ("nodes_pag", {"scale": 3.0}),
        "CFGZeroStar": ("nodes_cfg", {}),
        "APG": ("nodes_apg", {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.0}),
        "TCFG": ("nodes_tcfg", {}),
    }[name]
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    return node.execute(model, **options)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["PerturbedAttentionGuidance", "RescaleCFG", "CFGZeroStar", "APG", "TCFG"])
def test_stock_patches_of_guidance(nodes, model, prompts, domain, mode, name):
    """Whichever node comes first; perturbed attention still evaluates one row more, not three."""
    enhancement = {"mode": mode, "enhancement": STRENGTH, "prompts": domain}

    added, expected, rows, stock_rows = compare(nodes, patch_of(name, model), prompts, mode)
    close(added, expected)
    assert rows == [3, *stock_rows[1:]]

    conds = prompts.target, prompts.empty
    before, _ = predict(patched(nodes, patch_of(name, model), **enhancement), *conds, cfg=CFG)
    after, after_rows = predict(patch_of(name, patched(nodes, model, **enhancement)), *conds, cfg=CFG)
    assert torch.equal(before, after)
    assert after_rows == rows


def test_patches_that_look_at_the_picture_see_it_enhanced(nodes, model, prompts, domain):
    """CFGNorm limits how long the guided prediction may get."""
    node = importlib.import_module("comfy_extras.nodes_cfg").CFGNorm
    enhanced = patched(nodes, model, mode="VN-N", enhancement=STRENGTH, prompts=domain)
    x0, _ = predict(enhanced, prompts.target, prompts.empty, cfg=CFG)
    target = alone(model, prompts.target)
    scale = (target.norm(dim=1, keepdim=True) / (x0.norm(dim=1, keepdim=True) + 1e-8)).clamp(0, 1)

    found, _ = predict(node.execute(enhanced, 1.0)[0], prompts.target, prompts.empty, cfg=CFG)

    close(found, x0 * scale)


# other guiders


def test_dual_cfg_guider(nodes, model, prompts, domain):
    """It evaluates its three rows itself; the enhancement's is among them all the same."""
    guiders = importlib.import_module("comfy_extras.nodes_custom_sampler").DualCFGGuider
    rest = conditioning(7), prompts.empty, 2.0, CFG, "regular"
    stock, _ = predict_with(guiders.execute(model, prompts.target, *rest)[0])
    enhanced = patched(nodes, model, mode="V-uncond", enhancement=STRENGTH, prompts=domain)

    found, rows = predict_with(guiders.execute(enhanced, prompts.target, *rest)[0])

    term = alone(model, prompts.bare) - alone(model, prompts.empty)
    close(found - stock, CFG * STRENGTH * term)
    assert rows == [4]


def test_perp_neg_guider(nodes, model, prompts, domain):
    guiders = importlib.import_module("comfy_extras.nodes_perpneg").PerpNegGuider
    rest = prompts.target, conditioning(7), prompts.empty, CFG, 1.0
    stock, _ = predict_with(guiders.execute(model, *rest)[0])
    enhanced = patched(nodes, model, mode="VN-N", enhancement=STRENGTH, prompts=domain)

    found, rows = predict_with(guiders.execute(enhanced, *rest)[0])

    close(found - stock, CFG * STRENGTH * (alone(model, prompts.target) - alone(model, prompts.source)))
    assert rows == [4]


@pytest.mark.parametrize("sampler_name", ["euler_cfg_pp", "dpmpp_2m_cfg_pp"])
def test_samplers_that_hook_into_guidance_themselves(nodes, model, prompts, domain, sampler_name):
    """They ask for the unconditional prediction, and get the same through every node."""
    enhancement = {"mode": "VN-N", "enhancement": STRENGTH, "prompts": domain}
    start, conds = latent(), (prompts.target, prompts.empty)
    options = {"sampler_name": sampler_name, "cfg": 1.0}

    drawn = [draw(nodes, way, model, *conds, start, enhancement, **options) for way in WAYS]

    assert all(torch.equal(each, drawn[0]) for each in drawn[1:])
    assert not torch.equal(drawn[0], ksampler(model, *conds, start, **options))


# latents


@pytest.mark.parametrize("mode", MODES)
def test_inpainting_with_a_noise_mask(nodes, model, prompts, domain, mode):
    """What is masked out stays, the rest is the same through every node."""
    start = latent(fill=0.5) | {"noise_mask": torch.cat([torch.zeros(1, 64, 32), torch.ones(1, 64, 32)], 2)}
    enhancement = {"mode": mode, "enhancement": STRENGTH, "prompts": domain}

    drawn = [draw(nodes, way, model, prompts.target, prompts.empty, start, enhancement) for way in WAYS]

    assert all(torch.equal(each, drawn[0]) for each in drawn[1:])
    close(drawn[0][..., :4], start["samples"][..., :4])
    stock = ksampler(model, prompts.target, prompts.empty, start)
    assert (drawn[0][..., 4:] - stock[..., 4:]).abs().max() > 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_batches_of_latents(nodes, model, prompts, domain, way):
    """Each picture of a batch is what it is when it is drawn by itself."""
    enhancement = {"mode": "V-uncond", "enhancement": STRENGTH, "prompts": domain}
    batch = latent(3)

    together, rows = rows_of(
        model, lambda: draw(nodes, way, model, prompts.target, prompts.empty, batch, enhancement)
    )

    single = latent(1) | {"batch_index": [2]}
    close(together[2:], draw(nodes, way, model, prompts.target, prompts.empty, single, enhancement))
    assert set(rows) == {9}


@pytest.mark.parametrize("state", ["NO_VRAM", "LOW_VRAM"])
def test_offloading(nodes, prompts, domain, monkeypatch, state):
    """With weights that the host moves for each layer, as with --novram and --lowvram, and a LoRA on them."""
    management = host_module("comfy.model_management")
    _, patch = lora_hooks()
    enhancement = {"mode": "VN-N", "enhancement": STRENGTH, "prompts": domain}

    def run():
        model = patch(tiny_model())
        x0, rows = predict(patched(nodes, model, **enhancement), prompts.target, prompts.empty, cfg=CFG)
        return model.model.model_lowvram, x0, rows

    offloaded, expected, _ = run()
    assert not offloaded
    management.unload_all_models()
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState[state])
    if state == "LOW_VRAM":  # as on a card with room for a small part of the model
        monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)
        monkeypatch.setattr(management, "minimum_inference_memory", lambda: 1e18)
    offloaded, found, rows = run()
    management.unload_all_models()

    assert offloaded
    close(found, expected)
    assert rows == [3]
