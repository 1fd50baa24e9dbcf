"""Sampling in a real host process: three nodes, one result, together with the host's own nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes.test_real_host import node
from tools.host.client import Event, Interrupted, PromptError

LORA = "sketchbook_cyanotype.safetensors"
LIMITS = {"start_percent": 0.1, "end_percent": 0.9, "rescale": 0.3}
SAMPLING = {
    "seed": 3, "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
}  # fmt: skip


def graph(mode: str = "V-uncond", *, enhancement: float = 0.6, **sampling: Any) -> dict[str, dict[str, Any]]:
    """Return a prompt that draws by each of the three nodes, and by the stock KSampler."""
    o = SAMPLING | sampling
    conds: dict[str, Any] = {"positive": ["words", 1], "negative": ["words", 4]}
    enhance = {"prompts": ["words", 0], "mode": mode, "enhancement": enhancement, **LIMITS}
    prompt = {
        "demo": node("DomainGalleryLoadDemo"),
        "lora": node("LoraLoaderModelOnly", model=["demo", 0], lora_name=LORA, strength_model=1.0),
        "words": node("DomainGalleryPrompts", clip=["demo", 1], identifier="sks", category="house"),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=2),
        "stock": node("KSampler", model=["lora", 0], latent_image=["empty", 0], **conds, **o),
        "ksampler": node(
            "DomainGalleryKSampler", model=["lora", 0], latent_image=["empty", 0], **conds, **enhance, **o
        ),
        "enhancement": node("DomainGalleryEnhancement", model=["lora", 0], **enhance),
        "patch": node("KSampler", model=["enhancement", 0], latent_image=["empty", 0], **conds, **o),
        "guider": node("DomainGalleryGuider", model=["lora", 0], cfg=o["cfg"], **conds, **enhance),
        "noise": node("RandomNoise", noise_seed=o["seed"]),
        "sampler": node("KSamplerSelect", sampler_name=o["sampler_name"]),
        "sigmas": node(
            "BasicScheduler", model=["lora", 0], scheduler=o["scheduler"], steps=o["steps"],
            denoise=o["denoise"],
        ),
        "custom": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0],
            sigmas=["sigmas", 0], latent_image=["empty", 0],
        ),
    }  # fmt: skip
    for name in ("stock", "ksampler", "patch", "custom"):
        prompt[f"save {name}"] = node("SaveLatent", samples=[name, 0], filename_prefix=f"latents/{name}")
    return prompt


def rewire(prompt: dict[str, dict[str, Any]], old: list[Any], new: list[Any], *, but: set[str]) -> None:
    """Let whatever reads one output read another."""
    for name, content in prompt.items():
        for key, value in content["inputs"].items():
            if value == old and name not in but:
                content["inputs"][key] = new


def drawn(host, prompt) -> dict[str, torch.Tensor]:
    """Run a prompt and return the latents that it saved."""
    outputs = host.client.run(prompt)
    found = {}
    for name in ("stock", "ksampler", "patch", "custom"):
        saved = outputs[f"save {name}"]["latents"][0]
        found[name] = load_file(host.output / saved["subfolder"] / saved["filename"])["latent_tensor"]
    return found


def check_the_same(found: dict[str, torch.Tensor]) -> None:
    assert torch.equal(found["ksampler"], found["patch"])
    assert torch.equal(found["ksampler"], found["custom"])
    assert torch.isfinite(found["stock"]).all()
    assert (found["stock"] - found["ksampler"]).abs().max() > 1e-2


@pytest.mark.parametrize("mode", ["V-uncond", "VN-N"])
@pytest.mark.parametrize(
    ("sampler_name", "scheduler"), [("euler", "normal"), ("ddim", "karras"), ("euler_ancestral", "normal")]
)
def test_three_nodes_draw_the_same_bytes(host, mode, sampler_name, scheduler):
    check_the_same(drawn(host, graph(mode, sampler_name=sampler_name, scheduler=scheduler)))


def test_without_strength_they_draw_the_bytes_of_the_stock_ksampler(host):
    found = drawn(host, graph(enhancement=0.0, sampler_name="dpmpp_2m_sde", scheduler="karras"))

    assert all(torch.equal(each, found["stock"]) for each in found.values())


def patch(name: str, **inputs: Any):
    """Put a stock patch between the LoRA and everything that samples."""

    def change(prompt):
        prompt["patch of model"] = node(name, model=["lora", 0], **inputs)
        rewire(prompt, ["lora", 0], ["patch of model", 0], but={"patch of model", "sigmas"})

    return change


def in_the_place_of_words(socket: int, **nodes: dict[str, Any]):
    """Put nodes in the way of a prompt; the last is what is read, and "old" in their inputs is what was."""

    def change(prompt):
        for name, content in nodes.items():
            prompt[name] = {
                **content,
                "inputs": {
                    key: ["words", socket] if value == "old" else value
                    for key, value in content["inputs"].items()
                },
            }
        rewire(prompt, ["words", socket], [list(nodes)[-1], 0], but=set(nodes))

    return change


def own_base(**nodes: dict[str, Any]):
    """Give the identifier as base, after nodes that change it."""

    def change(prompt):
        in_the_place_of_words(3, **nodes)(prompt)
        for name in ("ksampler", "guider", "enhancement"):
            prompt[name]["inputs"]["base"] = [list(nodes)[-1], 0]

    return change


def second_domain(prompt):
    """Chain another enhancement before each node."""
    prompt["other words"] = node("DomainGalleryPrompts", clip=["demo", 1], identifier="olis", category="car")
    prompt["other"] = node(
        "DomainGalleryEnhancement",
        model=["lora", 0],
        prompts=["other words", 0],
        mode="VN-N",
        enhancement=-0.4,
    )
    rewire(prompt, ["lora", 0], ["other", 0], but={"other", "sigmas", "stock"})


def inpaint(prompt):
    prompt["mask"] = node("SolidMask", value=1.0, width=32, height=64)
    prompt["latent with a mask"] = node("SetLatentNoiseMask", samples=["empty", 0], mask=["mask", 0])
    rewire(prompt, ["empty", 0], ["latent with a mask", 0], but={"latent with a mask"})


def another_image(prompt):
    """Start half way from a drawing."""
    prompt["drawing"] = node("KSampler", **prompt["stock"]["inputs"])
    for name in ("stock", "ksampler", "patch", "custom"):
        prompt[name]["inputs"]["latent_image"] = ["drawing", 0]
    for name in ("stock", "ksampler", "patch", "sigmas"):
        prompt[name]["inputs"]["denoise"] = 0.5


AREA = {"width": 64, "height": 128, "x": 0, "y": 0, "strength": 1.0}  # halves, in pixels of a VAE of 8
HOOKED = {"strength": 1.0, "set_cond_area": "default", "hooks": ["hooks", 0]}
HOOK = node("CreateHookLora", lora_name=LORA, strength_model=0.5, strength_clip=0.0)
LONG = "a sks house " + "by the sea " * 12
COMPOSED = {
    "perturbed attention": patch("PerturbedAttentionGuidance", scale=1.0),
    "RescaleCFG": patch("RescaleCFG", multiplier=0.7),
    "CFGZeroStar": patch("CFGZeroStar"),
    "second domain": second_domain,
    "area": in_the_place_of_words(
        1, part=node("ConditioningSetArea", conditioning="old", **AREA),
        both=node("ConditioningCombine", conditioning_1="old", conditioning_2=["part", 0]),
    ),
    "mask on the base": own_base(
        solid=node("SolidMask", value=1.0, width=64, height=64),
        masked=node(
            "ConditioningSetMask", conditioning="old", mask=["solid", 0], strength=0.5,
            set_cond_area="default",
        ),
    ),
    "time range on the base": own_base(
        early=node("ConditioningSetTimestepRange", conditioning="old", start=0.0, end=0.6)
    ),
    "LoRA hooks on the positive": in_the_place_of_words(
        1, hooks=HOOK, hooked=node("ConditioningSetProperties", cond_NEW="old", **HOOKED)
    ),
    "LoRA hooks on the base": own_base(
        hooks=HOOK, hooked=node("ConditioningSetProperties", cond_NEW="old", **HOOKED)
    ),
    "a longer prompt": in_the_place_of_words(1, long=node("CLIPTextEncode", clip=["demo", 1], text=LONG)),
    "inpainting": inpaint,
    "image to image": another_image,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_they_draw_the_same_bytes_with_other_nodes(host, name):
    prompt = graph()
    COMPOSED[name](prompt)

    check_the_same(drawn(host, prompt))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": None}, "Expected prompts or base for the mode V-uncond, got neither"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "Expected start_percent up to end_percent"),
        ({"rescale": 1.5}, "bigger than max"),
        ({"enhancement": float("nan")}, "finite number from -10 to 10, got nan"),
    ],
)
@pytest.mark.parametrize("name", ["ksampler", "guider", "enhancement"])
def test_bad_input_is_an_error_on_its_node(host, name, changes, message):
    prompt = graph()
    inputs = {key: value for key, value in (prompt[name]["inputs"] | changes).items() if value is not None}
    prompt[name]["inputs"] = inputs

    with pytest.raises(PromptError, match=message) as caught:
        host.client.run(prompt)

    assert caught.value.node == name
    assert host.alive()


def test_what_there_is_to_note_is_shown_on_the_node(host):
    """A model without the LoRA, and a prompt without the identifier."""
    events: list[Event] = []
    prompt = graph("VN-N")
    for name in ("ksampler", "guider", "enhancement"):
        prompt[name]["inputs"]["model"] = ["demo", 0]
    rewire(prompt, ["words", 1], ["words", 2], but=set())

    host.client.run(prompt, on_event=events.append)

    for name in ("ksampler", "guider", "enhancement"):
        texts = [event.text for event in events if event.kind == "text" and event.node == name]
        assert any("no LoRA" in text for text in texts)
        assert any("adds nothing" in text for text in texts)


def test_a_sweep_shows_how_far_it_is_and_can_be_cancelled(host):
    prompt = {name: graph()[name] for name in ("demo", "lora", "words", "empty")}
    prompt["sweep"] = node(
        "DomainGallerySweep", model=["lora", 0], positive=["words", 1], negative=["words", 4],
        prompts=["words", 0], vae=["demo", 2], modes="both", enhancements="0, 0.6",
        latent_image=["empty", 0], **SAMPLING,
    )  # fmt: skip
    prompt["show"] = node("PreviewImage", images=["sweep", 0])
    events: list[Event] = []

    outputs = host.client.run(prompt, on_event=events.append)

    assert len(outputs["show"]["images"]) == 1
    seen = [event for event in events if event.node == "sweep"]
    assert any(e.kind == "progress" and e.value == e.max == 3 * SAMPLING["steps"] for e in seen)
    assert any(e.kind == "text" and "of 3 pictures" in e.text for e in seen)

    prompt["sweep"]["inputs"]["steps"] = 1000
    submission = host.client.submit(prompt)
    with pytest.raises(Interrupted), submission:
        for event in submission:
            if event.kind == "progress" and event.node == "sweep":
                submission.interrupt()
    prompt["sweep"]["inputs"]["steps"] = 1
    assert "show" in host.client.run(prompt)
