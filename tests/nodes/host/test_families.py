"""What a family is told by, which of its layers learn, and how it draws where nobody says otherwise."""

from __future__ import annotations

import importlib
import logging
from types import SimpleNamespace

import pytest
import torch

from gallery import PACK
from tests.nodes.thin_models import MODELS
from tests.nodes.tiny import conditioning, host_module, tiny_latents, tiny_model, tiny_prompts
from tests.nodes.training import train

#: Family, how many layers of the thin model learn, and the beginnings of their names.
EXPECTED = {
    "sd2": ("stable diffusion", 32, ("input_blocks", "middle_block", "output_blocks")),
    "sd2-v": ("stable diffusion v", 24, ("input_blocks", "middle_block", "output_blocks")),
    "sd3": ("sd3", 13, ("joint_blocks",)),
    "flux": ("flux", 12, ("double_blocks", "single_blocks")),
    "flux-schnell": ("flux schnell", 12, ("double_blocks", "single_blocks")),
    "flux2": ("flux2", 12, ("double_blocks", "single_blocks")),
    "chroma": ("chroma", 6, ("double_blocks", "single_blocks")),
    "lumina2": ("lumina2", 4, ("layers",)),
    "z-image": ("z-image", 2, ("layers",)),
    "qwen-image": ("qwen-image", 8, ("transformer_blocks",)),
    "anima": ("anima", 80, ("blocks",)),
    "krea2": ("krea2", 10, ("blocks",)),
    "wan2.1": ("wan", 16, ("blocks",)),
    "hunyuan-video": ("hunyuan-video", 12, ("double_blocks", "single_blocks")),
    "hunyuan-image": ("hunyuan-image", 12, ("double_blocks", "single_blocks")),
    "auraflow": ("auraflow", 12, ("double_layers", "single_layers")),
    "kandinsky5": ("kandinsky5", 8, ("visual_transformer_blocks",)),
}


@pytest.fixture
def empty_model(comfy):
    """Return a function that gives a thin MODEL of a family without memory for its weights."""

    def make(family, **network):
        thin = MODELS[family]
        config = getattr(importlib.import_module("comfy.supported_models"), thin.config)(
            thin.network | network
        )
        state = {name: tensor.clone() for name, tensor in thin.markers.items()}
        return SimpleNamespace(model=config.get_model(state, "", device="meta"))

    return make


@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_is_told_and_its_attention_learns(nodes, empty_model, family):
    """No layer of what refines or adapts a text learns, nor one that modulates."""
    name, count, beginnings = EXPECTED[family]
    model = empty_model(family)

    found = nodes("nodes.host.families").family_of(model)

    targets = nodes("domaingallery_core.trainables.adapters").target_modules
    layers = targets(model.model.diffusion_model, "attention", found.targets)
    more = targets(model.model.diffusion_model, "attention+feedforward", found.targets)
    assert (found.name, len(layers)) == (name, count)
    assert all(layer.startswith(beginnings) and "mod" not in layer for layer in layers)
    assert layers.keys() < more.keys() and all(layer.startswith(beginnings) for layer in more)


@pytest.mark.parametrize("family", EXPECTED)
def test_prompts_of_another_text_encoder_are_refused_where_the_width_can_be_told(
    nodes, errors, empty_model, family
):
    model, check = empty_model(family), nodes("nodes.host.text").check_text_encoder
    pooled = {"pooled_output": torch.zeros(1, MODELS[family].pooled or 1)}

    check(model, [[[torch.zeros(1, 4, MODELS[family].context), pooled]]])
    if family != "krea2":  # whose encoder's layers lie side by side
        with pytest.raises(errors.InputError, match=rf"\({MODELS[family].context} wide\), got 13"):
            check(model, [[[torch.zeros(1, 4, 13), pooled]]])


@pytest.mark.parametrize(
    ("family", "word"),
    [
        ("flux", "flux-1-dev"), ("flux-schnell", "flux-1-schnell"), ("chroma", "chroma"),
        ("sd3", "stable-diffusion-3"), ("lumina2", "lumina-2"), ("hunyuan-image", "hunyuan-image-2.1"),
    ],
)  # fmt: skip
def test_managers_of_loras_are_told_the_architecture(nodes, empty_model, family, word):
    model = empty_model(family).model
    found = nodes("nodes.host.families").family_of(SimpleNamespace(model=model)).architecture(model)

    assert found["modelspec.architecture"] == f"{word}/lora"
    assert found["modelspec.implementation"].startswith("https://")


@pytest.mark.parametrize("family", ["flux2", "z-image", "qwen-image", "krea2", "wan2.1"])
def test_an_architecture_that_managers_have_no_word_for_is_left_out(nodes, empty_model, family):
    model = empty_model(family)
    assert nodes("nodes.host.families").family_of(model).architecture(model.model) == {}


def test_a_guidance_scale_that_a_network_reads_is_one_where_nothing_is_said(nodes):
    """Other families are not told of any."""
    model, prompts = tiny_model(), [conditioning(0), conditioning(1)]
    prompts[1][0][1]["guidance"] = 3.5
    seen = []
    model.model.extra_conds = lambda **given: seen.append(given.get("guidance")) or {}

    for scale in (None, 1.0):
        denoiser = nodes("nodes.host.model").HostDenoiser(model)
        denoiser.family = SimpleNamespace(guidance=scale)
        denoiser.conditions(prompts, tiny_latents(1))

    assert seen == [None, 3.5, 1.0, 3.5] and "guidance" not in prompts[0][0][1]


@pytest.mark.parametrize(("family", "without"), [("flux", "flux schnell"), ("flux2", "flux2 klein")])
def test_networks_without_a_guidance_scale_are_told_from_those_with_one(nodes, empty_model, family, without):
    family_of = nodes("nodes.host.families").family_of

    assert family_of(empty_model(family)).name == family
    assert family_of(empty_model(family, guidance_embed=False)).name == without


def test_networks_with_a_distilled_guidance_learn_without_it_and_others_as_the_host_says(nodes):
    families = nodes("nodes.host.families").FAMILIES

    assert {name for name, family in families.items() if family.guidance == 1.0} == {
        "flux", "flux schnell", "flux2", "hunyuan-video"
    }  # fmt: skip
    assert all(family.guidance in (None, 1.0) for family in families.values())


def test_a_term_that_a_family_cannot_have_is_switched_off_and_the_node_says_so(nodes, caplog, monkeypatch):
    family = nodes("nodes.host.families").FAMILIES["stable diffusion"]
    monkeypatch.setattr(type(family), "compares", False)

    with caplog.at_level(logging.WARNING):
        trained = train(nodes, tiny_model())

    assert set(trained.ui["losses"][0]) == {"target", "prior", "disentanglement", "total"}
    assert "The similarity term is switched off" in trained.ui["text"][0]


def test_a_base_that_is_made_for_few_steps_is_trained_with_a_warning(nodes, monkeypatch):
    family = nodes("nodes.host.families").FAMILIES["stable diffusion"]
    monkeypatch.setattr(type(family), "distilled", True)

    text = train(nodes, tiny_model()).ui["text"][0]

    assert "A stable diffusion model is made for few steps, which training blurs" in text


def test_families_that_are_made_for_few_steps_are_those(nodes):
    families = nodes("nodes.host.families").FAMILIES

    distilled = {name for name, family in families.items() if family.distilled}
    assert distilled == {"flux schnell", "z-image", "krea2"}


@pytest.mark.parametrize(
    ("file", "warned"),
    [
        ("sd_xl_turbo_1.0_fp16.safetensors", True), ("sdxl_lightning_4step.safetensors", True),
        ("DreamShaperXL-Lightning.safetensors", True), ("qwen_image_distill_full.safetensors", True),
        ("Hyper-SD15-8steps.safetensors", True), ("some/turbo/sd_xl_base_1.0.safetensors", False),
        ("hyperrealism_v3.safetensors", False), ("v1-5-pruned.ckpt", False),
    ],
)  # fmt: skip
def test_a_base_that_is_called_after_few_steps_is_trained_with_a_warning(nodes, file, warned):
    """Of SDXL and others nothing but the name of the file tells."""
    model = tiny_model()
    model.cached_patcher_init = (print, (f"/models/checkpoints/{file}", False))

    text = nodes("nodes.host.few_steps").few_steps(model)

    assert bool(text) == warned and (not warned or text.startswith(f"By its name, {file}"))
    assert nodes("nodes.host.few_steps").few_steps(tiny_model()) == ""
    if file.startswith("sd_xl_turbo"):
        assert text in train(nodes, model, steps=1).ui["text"][0]


def test_the_table_of_the_documents_has_every_family_with_its_numbers(nodes):
    page = (PACK / "docs" / "families.md").read_text("utf-8")
    rows = [[cell.strip() for cell in row.split("|")] for row in page.splitlines() if row.startswith("| ")]
    told = {row[1]: row[5] for row in rows if len(row) == 7}
    families = nodes("nodes.host.families").FAMILIES
    own = {n: f for n, f in families.items() if ".host.families." in type(f).__module__}

    assert own.keys() - {"plain", "unet"} <= told.keys()
    for name, text in told.items():
        if name in own:
            drawing = own[name].drawing
            assert text.startswith(f"{drawing.size}, ")
            for number, unit in ((f"{drawing.steps} steps", "steps"), (f"cfg {drawing.cfg:g}", "cfg")):
                assert number in text or unit not in text, name


def test_what_is_left_to_the_model_is_what_suits_it_and_what_is_typed_stays(nodes):
    images = nodes("nodes.data.source_images")
    drawing = nodes("nodes.host.families").FAMILIES["flux"].drawing
    left = {"steps": 0, "cfg": 0.0, "sampler_name": "automatic", "scheduler": "automatic"}
    typed = {"steps": 7, "cfg": 2.5, "sampler_name": "ddim", "scheduler": "normal"}

    suits = {"steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    assert images.chosen(drawing, **left) == suits
    assert images.chosen(drawing, **typed) == typed
    assert images.chosen(drawing, **left | {"steps": 3}) == suits | {"steps": 3}


def test_the_size_that_suits_a_model_is_drawn_and_said(nodes, said, monkeypatch):
    family = nodes("nodes.host.families").FAMILIES["stable diffusion"]
    base = nodes("nodes.host.families.base")
    small = base.Drawing(size=64, steps=1, cfg=2.0, sampler="euler", scheduler="normal", origin="a test")
    monkeypatch.setattr(type(family), "drawing", small)
    vae = SimpleNamespace(
        encode=len, decode=lambda latents: torch.zeros(len(latents), 64, 64, 3), latent_channels=4
    )

    with torch.inference_mode():
        sources, _ = (
            nodes("nodes.data.source_images")
            .DomainGallerySourceImages.execute(
                tiny_model(), vae, tiny_prompts(nodes), 2, 0, 0, 0, 0.0, "automatic", "automatic", 0, 0
            )
            .result
        )

    assert sources[0].latents.shape == (2, 4, 8, 8)
    assert "2 images of 64 x 64, 1 steps of euler (normal) at cfg 2" in said


def test_images_smaller_than_two_latents_are_refused(nodes, errors):
    with pytest.raises(errors.InputError, match="at least 16 pixels for this model, got 8 x 64"):
        nodes("nodes.data.source_images").empty_latents(tiny_model(), 1, 8, 64)


def test_a_model_of_the_host_that_no_row_is_for_is_a_plain_transformer(nodes, empty_model):
    """Its features are what the first half of all its blocks gives."""
    model = empty_model("krea2")
    model.model.__class__ = type("Unheard", (type(model.model),), {})
    found = nodes("nodes.host.families").family_of(model)
    layers = nodes("domaingallery_core.trainables.adapters").target_modules(
        model.model.diffusion_model, "attention", found.targets
    )

    assert found.name == "transformer" and found.compares
    assert {"blocks.0.attn.wq", "blocks.1.attn.wo"} <= layers.keys()
    assert host_module("comfy.model_base").Krea2 is type(model.model).__mro__[1]
