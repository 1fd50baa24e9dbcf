"""Enhancement with what else a graph may hold: it adds the last summand of Eq. 6 and changes nothing else."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.host.drawing import WAYS, alone, draw, ksampler, latent, patched, predict, predict_with, rows_of
from tests.host.tiny import conditioning, host_module, tiny_model, tiny_prompts

CFG, STRENGTH = 3.0, 0.7
MODES = ["V-uncond", "VN-N"]


@pytest.fixture(scope="module")
def model(comfy):
    return tiny_model()


@pytest.fixture(scope="module")
def prompts(nodes):
    return tiny_prompts(nodes)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def with_values(cond, **values):
    """Return a CONDITIONING with more in its dictionaries, as the host's nodes make it."""
    return host_module("node_helpers").conditioning_set_values(cond, values)


def compare(nodes, model, prompts, mode, positive=None, negative=None, base=None, *, sigma=2.0, **other):
    """Return what enhancement adds to the host's guidance, its formula, and the rows with and without it.

    `other` are the conditionings by which the formula's t, u and b are predicted, where they differ.
    """
    positive, negative = positive or prompts.target, negative or prompts.empty
    base = base or {"V-uncond": prompts.bare, "VN-N": prompts.source}[mode]
    stock, stock_rows = predict(model, positive, negative, cfg=CFG, sigma=sigma)
    enhanced = patched(nodes, model, mode=mode, enhancement=STRENGTH, base=base)
    found, rows = predict(enhanced, positive, negative, cfg=CFG, sigma=sigma)
    b = alone(model, other.get("b", base), sigma=sigma)
    if mode == "V-uncond":
        term = b - alone(model, other.get("u", negative), sigma=sigma)
    else:
        term = alone(model, other.get("t", positive), sigma=sigma) - b
    return found - stock, CFG * STRENGTH * term, rows, stock_rows


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
def test_stock_patches_of_guidance(nodes, model, prompts, mode, name):
    """Whichever node comes first; perturbed attention still evaluates one row more, not three."""
    enhancement = {"mode": mode, "enhancement": STRENGTH, "prompts": prompts}

    added, expected, rows, stock_rows = compare(nodes, patch_of(name, model), prompts, mode)
    close(added, expected)
    assert rows == [3, *stock_rows[1:]]

    conds = prompts.target, prompts.empty
    before, _ = predict(patched(nodes, patch_of(name, model), **enhancement), *conds, cfg=CFG)
    after, after_rows = predict(patch_of(name, patched(nodes, model, **enhancement)), *conds, cfg=CFG)
    assert torch.equal(before, after)
    assert after_rows == rows


def test_patches_that_look_at_the_picture_see_it_enhanced(nodes, model, prompts):
    """CFGNorm limits how long the guided prediction may get."""
    node = importlib.import_module("comfy_extras.nodes_cfg").CFGNorm
    enhanced = patched(nodes, model, mode="VN-N", enhancement=STRENGTH, prompts=prompts)
    x0, _ = predict(enhanced, prompts.target, prompts.empty, cfg=CFG)
    target = alone(model, prompts.target)
    scale = (target.norm(dim=1, keepdim=True) / (x0.norm(dim=1, keepdim=True) + 1e-8)).clamp(0, 1)

    found, _ = predict(node.execute(enhanced, 1.0)[0], prompts.target, prompts.empty, cfg=CFG)

    close(found, x0 * scale)


# other guiders


def test_dual_cfg_guider(nodes, model, prompts):
    """It evaluates its three rows itself; the enhancement's is among them all the same."""
    guiders = importlib.import_module("comfy_extras.nodes_custom_sampler").DualCFGGuider
    rest = conditioning(7), prompts.empty, 2.0, CFG, "regular"
    stock, _ = predict_with(guiders.execute(model, prompts.target, *rest)[0])
    enhanced = patched(nodes, model, mode="V-uncond", enhancement=STRENGTH, prompts=prompts)

    found, rows = predict_with(guiders.execute(enhanced, prompts.target, *rest)[0])

    term = alone(model, prompts.bare) - alone(model, prompts.empty)
    close(found - stock, CFG * STRENGTH * term)
    assert rows == [4]


def test_perp_neg_guider(nodes, model, prompts):
    guiders = importlib.import_module("comfy_extras.nodes_perpneg").PerpNegGuider
    rest = prompts.target, conditioning(7), prompts.empty, CFG, 1.0
    stock, _ = predict_with(guiders.execute(model, *rest)[0])
    enhanced = patched(nodes, model, mode="VN-N", enhancement=STRENGTH, prompts=prompts)

    found, rows = predict_with(guiders.execute(enhanced, *rest)[0])

    close(found - stock, CFG * STRENGTH * (alone(model, prompts.target) - alone(model, prompts.source)))
    assert rows == [4]


@pytest.mark.parametrize("sampler_name", ["euler_cfg_pp", "dpmpp_2m_cfg_pp"])
def test_samplers_that_hook_into_guidance_themselves(nodes, model, prompts, sampler_name):
    """They ask for the unconditional prediction, and get the same through every node."""
    enhancement = {"mode": "VN-N", "enhancement": STRENGTH, "prompts": prompts}
    start, conds = latent(), (prompts.target, prompts.empty)
    options = {"sampler_name": sampler_name, "cfg": 1.0}

    drawn = [draw(nodes, way, model, *conds, start, enhancement, **options) for way in WAYS]

    assert all(torch.equal(each, drawn[0]) for each in drawn[1:])
    assert not torch.equal(drawn[0], ksampler(model, *conds, start, **options))


# what conditionings can carry


def lora_hooks(strength=1.0, seed=3):
    """Return a LoRA as hooks, and the same as patches of a MODEL."""
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(64, 2, generator=generator), torch.randn(2, 16, generator=generator)
    state = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    hooks = host_module("comfy.hooks").create_hook_lora(state, strength, 0.0)

    def patch(model):
        return host_module("comfy.sd").load_lora_for_models(model, None, state, strength, 0.0)[0]

    return hooks, patch


@pytest.mark.parametrize("where", ["positive", "base", "both"])
@pytest.mark.parametrize("mode", MODES)
def test_lora_hooks_of_single_conditionings(nodes, model, prompts, mode, where):
    """A LoRA that hangs on one conditioning acts on that one alone, and is gone afterwards."""
    hooks, patch = lora_hooks()
    plain = {"positive": prompts.target, "base": {"V-uncond": prompts.bare, "VN-N": prompts.source}[mode]}
    hooked = {name: with_values(cond, hooks=hooks) for name, cond in plain.items()}
    positive = hooked["positive"] if where != "base" else plain["positive"]
    base = hooked["base"] if where != "positive" else plain["base"]
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}

    added, expected, rows, _ = compare(nodes, model, prompts, mode, positive, base=base)

    close(added, expected)
    other = alone(patch(model), plain["base"])
    close(alone(model, hooked["base"]), other)
    assert not torch.allclose(other, alone(model, plain["base"]), atol=1e-3)
    assert sorted(rows) == [1, 2]
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())


def thin_control(strength=1.0):
    """Return a ControlNet that adds a constant to the middle block."""
    base = host_module("comfy.controlnet").ControlBase

    class Thin(base):
        calls: list[int]

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            self.calls.append(x_noisy.shape[0])
            hint = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4) * strength
            return {"middle": [hint.expand(len(x_noisy), 64, 4, 4)], "output": []}

    thin = Thin()
    thin.calls = []
    return thin


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("apply", ["advanced", "to the positive"])
def test_controlnet(nodes, model, prompts, mode, apply):
    """The base gets the ControlNet of what it is compared with, so the difference is one of words alone."""
    control = thin_control()
    values = {"control": control, "control_apply_to_uncond": apply != "advanced"}
    positive = with_values(prompts.target, **values)
    negative = with_values(prompts.empty, **values) if apply == "advanced" else prompts.empty
    base = {"V-uncond": prompts.bare, "VN-N": prompts.source}[mode]

    def with_control(cond):
        return with_values(cond, control=control, control_apply_to_uncond=False)

    added, expected, rows, _ = compare(
        nodes, model, prompts, mode, positive, negative,
        b=with_control(base), u=with_control(prompts.empty), t=positive,
    )  # fmt: skip

    close(added, expected)
    assert rows == [3], "all rows share one ControlNet, so they share one batch"
    assert not torch.allclose(alone(model, positive), alone(model, prompts.target), atol=1e-3)


HALF = torch.zeros(1, 8, 8)
HALF[..., :4] = 1.0
AREA = {"area": (8, 4, 0, 0), "strength": 1.0, "set_area_to_bounds": False}
MASK = {"mask": HALF, "mask_strength": 1.0, "set_area_to_bounds": False}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("values", [AREA, MASK], ids=["area", "mask"])
def test_a_base_for_a_part_of_the_picture_enhances_that_part_alone(nodes, model, prompts, mode, values):
    """The rest is what the host's own guidance gives, to the byte."""
    base = with_values({"V-uncond": prompts.bare, "VN-N": prompts.source}[mode], **values)
    stock, _ = predict(model, prompts.target, prompts.empty, cfg=CFG)

    found, _ = predict(
        patched(nodes, model, mode=mode, enhancement=STRENGTH, base=base),
        prompts.target,
        prompts.empty,
        cfg=CFG,
    )

    assert torch.equal(found[..., 4:], stock[..., 4:])
    assert (found[..., :2] - stock[..., :2]).abs().min() > 0
    if values is MASK:
        _, expected, _, _ = compare(nodes, model, prompts, mode)
        close(found[..., :4] - stock[..., :4], expected[..., :4])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("values", [AREA, MASK], ids=["area", "mask"])
def test_a_positive_and_a_negative_of_several_parts(nodes, model, prompts, mode, values):
    """Areas and masks on the prompts themselves, combined with a prompt for the whole picture."""
    positive = [*prompts.target, *with_values(conditioning(7), **values)]
    negative = [*prompts.empty, *with_values(conditioning(8), **values)]

    added, expected, _, _ = compare(nodes, model, prompts, mode, positive, negative)

    if values is MASK:
        close(added, expected)
        return
    # The host evaluates each area for every conditioning, so the base is evaluated there too.
    base = {"V-uncond": prompts.bare, "VN-N": prompts.source}[mode]
    inside = [*base, *with_values(base, **values)]
    _, expected, _, _ = compare(nodes, model, prompts, mode, positive, negative, b=inside)
    close(added, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_base_for_a_part_of_the_schedule_enhances_that_part_alone(nodes, model, prompts, mode):
    """Outside its time it costs nothing."""
    base = with_values(
        {"V-uncond": prompts.bare, "VN-N": prompts.source}[mode], start_percent=0.0, end_percent=0.5
    )
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    enhanced = patched(nodes, model, mode=mode, enhancement=STRENGTH, base=base)
    conds = prompts.target, prompts.empty

    early = predict(enhanced, *conds, cfg=CFG, sigma=to_sigma(0.3))
    late = predict(enhanced, *conds, cfg=CFG, sigma=to_sigma(0.7))

    assert torch.equal(late[0], predict(model, *conds, cfg=CFG, sigma=to_sigma(0.7))[0])
    assert (early[1], late[1]) == ([3], [2])
    added, expected, _, _ = compare(nodes, model, prompts, mode, base=base, sigma=to_sigma(0.3))
    close(added, expected)


@pytest.mark.parametrize("mode", MODES)
def test_prompts_that_take_turns(nodes, model, prompts, mode):
    """A positive of one prompt for the first half of the schedule and one for the second."""
    turns = [
        *with_values(prompts.target, start_percent=0.0, end_percent=0.5),
        *with_values(conditioning(7), start_percent=0.5, end_percent=1.0),
    ]
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma

    for percent, t in ((0.3, prompts.target), (0.7, conditioning(7))):
        added, expected, rows, _ = compare(nodes, model, prompts, mode, turns, sigma=to_sigma(percent), t=t)
        close(added, expected)
        assert rows == [3]


@pytest.mark.parametrize("mode", MODES)
def test_combined_conditionings(nodes, model, prompts, mode):
    """Several prompts in positive, negative and base are averaged, as the host does it."""
    mean = (alone(model, prompts.source) + alone(model, conditioning(9))) / 2
    base = [*prompts.source, *conditioning(9)]

    added, expected, rows, _ = compare(
        nodes,
        model,
        prompts,
        mode,
        [*prompts.target, *conditioning(7)],
        [*prompts.empty, *conditioning(8)],
        base,
    )

    close(added, expected)
    close(alone(model, base), mean)
    assert rows == [6]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("tokens", "rows"), [(12, [3]), (7, [2, 1])])
def test_prompts_of_other_lengths(nodes, model, prompts, mode, tokens, rows):
    """The host repeats tokens up to a common length, or evaluates in two batches where that is too long."""
    added, expected, found, _ = compare(nodes, model, prompts, mode, conditioning(9, tokens=tokens))

    close(added, expected)
    assert sorted(found) == sorted(rows)


def test_what_belongs_to_the_picture_is_taken_over(nodes, prompts):
    """A size such as SDXL's, given with the positive alone, holds for the base as well."""
    model = tiny_model(pooled=3)
    sdxl = tiny_prompts(nodes, pooled=3)
    sizes = {"width": 128, "height": 96}
    positive = with_values(sdxl.target, **sizes)

    added, expected, _, _ = compare(
        nodes, model, sdxl, "VN-N", positive, base=sdxl.source, b=with_values(sdxl.source, **sizes)
    )

    close(added, expected)
    assert not torch.allclose(
        alone(model, sdxl.source), alone(model, with_values(sdxl.source, **sizes)), atol=1e-3
    )


# latents


@pytest.mark.parametrize("mode", MODES)
def test_inpainting_with_a_noise_mask(nodes, model, prompts, mode):
    """What is masked out stays, the rest is the same through every node."""
    start = latent(fill=0.5) | {"noise_mask": torch.cat([torch.zeros(1, 64, 32), torch.ones(1, 64, 32)], 2)}
    enhancement = {"mode": mode, "enhancement": STRENGTH, "prompts": prompts}

    drawn = [draw(nodes, way, model, prompts.target, prompts.empty, start, enhancement) for way in WAYS]

    assert all(torch.equal(each, drawn[0]) for each in drawn[1:])
    close(drawn[0][..., :4], start["samples"][..., :4])
    stock = ksampler(model, prompts.target, prompts.empty, start)
    assert (drawn[0][..., 4:] - stock[..., 4:]).abs().max() > 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_batches_of_latents(nodes, model, prompts, way):
    """Each picture of a batch is what it is when it is drawn by itself."""
    enhancement = {"mode": "V-uncond", "enhancement": STRENGTH, "prompts": prompts}
    batch = latent(3)

    together, rows = rows_of(
        model, lambda: draw(nodes, way, model, prompts.target, prompts.empty, batch, enhancement)
    )

    single = latent(1) | {"batch_index": [2]}
    close(together[2:], draw(nodes, way, model, prompts.target, prompts.empty, single, enhancement))
    assert set(rows) == {9}


@pytest.mark.parametrize("state", ["NO_VRAM", "LOW_VRAM"])
def test_offloading(nodes, prompts, monkeypatch, state):
    """With weights that the host moves for each layer, as with --novram and --lowvram, and a LoRA on them."""
    management = host_module("comfy.model_management")
    _, patch = lora_hooks()
    enhancement = {"mode": "VN-N", "enhancement": STRENGTH, "prompts": prompts}

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
