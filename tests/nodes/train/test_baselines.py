"""Train Baseline and Train Subject LoRA, on a tiny MODEL and on the demo's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes import training
from tests.nodes.baselines import FIELDS, baseline, copies, load_lora, on_demo
from tests.nodes.tiny import host_module, same, tiny_model, weights_of


@pytest.mark.parametrize("method", ["DreamBooth", "DreamBooth LoRA"])
def test_it_trains_and_the_model_is_as_it_was(nodes, model, method):
    before = weights_of(model)

    result = baseline(nodes, model, method)

    assert set(result.ui["losses"][0]) == {"target", "prior", "total"}
    assert same(before, weights_of(model))
    assert "got a LoRA" in result[4].message
    assert json.loads(result[0].metadata["domaingallery.plan"])["method"]["name"].startswith("dreambooth")
    numbers = sum(t.numel() for name, t in result[0].items() if not name.endswith("alpha"))
    assert result[5].startswith(f"{method}: ") and f", {numbers:,} numbers learned, " in result[5]


def test_dreambooth_changes_every_weight_and_loads_by_the_stock_node_to_the_last_digit(nodes, model):
    before = weights_of(model)
    kept, weights = {}, nodes("domaingallery_core.trainables.weights").Weights
    remove = weights.remove

    def noted(self):
        kept.update({name: copy.detach().clone() for name, (_, copy) in self._names.items()})
        remove(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "remove", noted)
        lora = baseline(nodes, model, "DreamBooth")[0]
    loaded = load_lora(model, lora)

    assert all(name.endswith((".diff", ".diff_b")) for name in lora)
    assert all(bool(difference.any()) for difference in lora.values())
    assert len(lora) == len(kept) == len(list(model.model.diffusion_model.parameters()))
    for name, copy in kept.items():
        key = f"diffusion_model.{name}"
        found = loaded.patch_weight_to_device(key, return_weight=True)
        last_digit = torch.maximum(copy.abs(), before[key].abs()) * 2**-23
        assert bool(((found - copy).abs() <= last_digit).all())
    assert lora.metadata["ss_network_args"] == json.dumps({"algo": "full"})
    assert same(before, weights_of(model))


@pytest.mark.parametrize("variant", ["published", "released"])
def test_domainstudio_trains_through_the_vae_of_the_dataset(demo, small, variant):
    before, codec = weights_of(demo.model), copies(demo.vae.first_stage_model.state_dict())

    result = on_demo(demo, "DomainStudio", variant=variant, options=small)

    terms = {"target", "prior", "image_similarity", "frequency_similarity", "frequency", "total"}
    losses = result.ui["losses"][0]
    assert set(losses) == terms and all(value > 0 for values in losses.values() for value in values)
    assert all(bool(difference.any()) for difference in result[0].values())
    assert same(before, weights_of(demo.model))
    assert same(codec, dict(demo.vae.first_stage_model.state_dict()))


def test_domainstudio_learns_a_style_beside_the_images(demo, small):
    nodes = demo.nodes
    with torch.inference_mode():
        words = nodes("nodes.data.prompts").DomainGalleryPrompts.execute(demo.clip, "sks", "face in oil")[0]
    [part] = demo.dataset.parts
    style = {"style_prompts": words, "style_dataset": replace(demo.dataset, parts=(part,))}

    result = on_demo(demo, "DomainStudio", options=small, **style)

    assert "style" in result.ui["losses"][0]
    assert result[0].metadata["modelspec.trigger_phrase"] == "a sks face in oil"
    with pytest.raises(
        nodes("domaingallery_core.errors").InputError, match="prompts and images of the style"
    ):
        on_demo(demo, "DomainStudio", options=small, style_prompts=words)


def test_the_variants_of_domainstudio_differ(demo, small):
    runs = [
        on_demo(demo, "DomainStudio", variant=variant, options=small)
        for variant in ("published", "released", "published")
    ]

    assert same(runs[0][0], runs[2][0]) and not same(runs[0][0], runs[1][0])


def test_a_text_encoder_learns_with_the_model_and_loads_by_the_stock_loader(demo, output):
    """Both are as they were; a file of both, loaded onto both, encodes as the text encoder did at the end."""
    model, clip = weights_of(demo.model), copies(demo.clip.get_sd())
    kept, own = {}, demo.nodes("domaingallery_core.trainables.weights").Weights
    remove = own.remove

    def noted(self):
        kept.update(copies(self.named_parameters()))
        remove(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "remove", noted)
        alone = on_demo(demo, "DreamBooth")
        both = on_demo(demo, "DreamBooth", text_encoder=demo.clip)
    path = demo.nodes("nodes.files.saving").DomainGallerySaveLora.execute(both[0], "b", "comfyui").result[0]
    with torch.inference_mode():
        loaded, encoder = host_module("comfy.sd").load_lora_for_models(
            demo.model, demo.clip, load_file(path), 1.0, 1.0
        )

    ours = {name: t for name, t in both[0].items() if name.startswith("text_encoders.")}
    assert set(both[0]) - set(ours) == set(alone[0]) and not same(alone[0], {n: both[0][n] for n in alone[0]})
    assert len(loaded.patches) == len(alone[0]) and len(encoder.patcher.patches) == len(ours) > 20
    for name in encoder.patcher.patches:
        found = encoder.patcher.patch_weight_to_device(name, return_weight=True)
        learned = kept[f"text_encoders.{name}"]
        digit = torch.finfo(clip[name].dtype).eps * torch.maximum(learned.abs(), clip[name].abs())
        assert bool(((found - learned).abs() <= digit).all())  # the host has text encoders in float16
    assert same(model, weights_of(demo.model)) and same(clip, demo.clip.get_sd())
    assert not any("forward" in vars(module) for module in demo.clip.cond_stage_model.modules())
    with pytest.raises(demo.nodes("domaingallery_core.errors").FileError, match="Save in the comfyui format"):
        demo.nodes("nodes.files.saving").DomainGallerySaveLora.execute(both[0], "b", "kohya")


@pytest.mark.parametrize("method", [*FIELDS])
def test_a_cancelled_training_goes_on_to_the_same_bytes(demo, small, method, cancel_at):
    options = {"options": small, "steps": 3}
    expected = on_demo(demo, method, **options)
    cancel_at(2)
    with pytest.raises(host_module("comfy.model_management").InterruptProcessingException):
        on_demo(demo, method, **options)
    cancel_at(1000)

    result = on_demo(demo, method, **options)

    assert "gone on from step 2" in result.ui["text"][0]
    kept = 4 if method == "Textual Inversion" else 0
    assert same(result[kept], expected[kept]) and result[1] == expected[1]


def test_a_subject_lora_is_dreambooth_with_a_lora(nodes, model):
    node = nodes("nodes.train.subject").DomainGallerySubject

    subject = training.execute(node, nodes, model, steps=4)
    same_by_baseline = baseline(nodes, model, "DreamBooth LoRA")

    assert same(subject[0], same_by_baseline[0])
    assert {"dreambooth", "subject", "character"} <= set(node.define_schema().search_aliases)
    loaded = load_lora(model, subject[0])
    assert not torch.equal(training.draw(nodes, loaded), training.draw(nodes, model))


def test_all_weights_are_saved_under_the_names_of_other_programs(nodes, model, output):
    lora = baseline(nodes, model, "DreamBooth", steps=1)[0]
    save = nodes("nodes.files.saving").DomainGallerySaveLora

    path = save.execute(lora, "all", "kohya").result[0]

    names = set(load_file(path))
    assert "lora_unet_down_blocks_0_resnets_0_conv1.diff" in names
    assert len(names) == len(lora) and all(name.endswith((".diff", ".diff_b")) for name in names)
    stock = host_module("comfy.sd").load_lora_for_models
    loaded, _ = stock(model, None, load_file(path), 1.0, 0.0)
    assert len(loaded.patches) == len(lora)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_weights_of_a_model_in_half_precision_learn_in_float32(comfy, nodes, dtype):
    model = tiny_model(dtype=dtype)
    before = weights_of(model)

    result = baseline(nodes, model, "DreamBooth")

    assert {tensor.dtype for tensor in result[0].values()} == {torch.float32}
    assert all(bool(tensor.any()) and bool(torch.isfinite(tensor).all()) for tensor in result[0].values())
    assert same(before, weights_of(model))


def test_the_host_makes_copies_of_the_demo_model_for_its_own_training(demo):
    """The same weights in other tensors."""
    with torch.inference_mode():
        copy = demo.model.clone(force_deepcopy=True)

    assert copy.model is not demo.model.model and same(weights_of(copy), weights_of(demo.model))


def test_the_stock_saver_writes_a_checkpoint_of_what_was_learned(demo, tmp_path):
    """A MODEL with the differences on it, saved by the host, has the weights that it draws with."""
    lora = on_demo(demo, "DreamBooth")[0]
    loaded, path = load_lora(demo.model, lora), tmp_path / "all.safetensors"
    expected = {name: loaded.patch_weight_to_device(name, return_weight=True) for name in loaded.patches}

    with torch.inference_mode():
        host_module("comfy.sd").save_checkpoint(str(path), loaded)
    host_module("comfy.model_management").unload_all_models()

    saved = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    assert len(expected) == len(lora)
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
