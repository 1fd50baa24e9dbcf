"""Train Baseline, Train Subject LoRA and Save Embedding, on a tiny MODEL and on the demo's."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes import training
from tests.nodes.tiny import host_module, same, tiny_dataset, tiny_model, weights_of

#: The inputs that each method has by itself.
FIELDS = {
    "DreamBooth": {"prior_weight": 1.0, "copies": "float32"},
    "DreamBooth LoRA": {"prior_weight": 1.0},
    "DomainStudio": {
        "variant": "published", "prior_weight": 1.0, "image_similarity_weight": 100.0,
        "frequency_similarity_weight": 100.0, "frequency_weight": 0.1, "copies": "float32",
    },
    "Textual Inversion": {"word": "face", "vectors": 2, "templates": "object"},
}  # fmt: skip


NODE = ("prompts", "dataset", "seed", "options", "run_options")


def chosen(method, **changes):
    return {"method": method, "steps": 4, "learning_rate": 1e-3, **FIELDS.get(method, {}), **changes}


def baseline(nodes, model, method, **changes):
    """Run Train Baseline as the host does; what is no input of the node is one of the method."""
    inputs = {"prompts": training.tiny_prompts(nodes), "dataset": tiny_dataset(nodes)}
    own = {name: changes.pop(name) for name in [*changes] if name in NODE}
    node = nodes("nodes.train.baseline").DomainGalleryBaseline
    with torch.inference_mode():
        return node.execute(model=model, **{"seed": 0, **inputs, **own, "method": chosen(method, **changes)})


def load_lora(model, lora):
    """Return a MODEL that the stock node puts a LORA_MODEL on."""
    import comfy_extras.nodes_train

    with torch.inference_mode():
        return comfy_extras.nodes_train.LoraModelLoader.execute(model, lora, 1.0)[0]


@pytest.mark.parametrize("method", ["DreamBooth", "DreamBooth LoRA"])
def test_it_trains_and_the_model_is_as_it_was(nodes, model, method):
    before = weights_of(model)

    result = baseline(nodes, model, method)

    assert set(result.ui["losses"][0]) == {"target", "prior", "total"}
    assert same(before, weights_of(model))
    assert "got a LoRA" in result[4].message
    assert json.loads(result[0].metadata["domaingallery.plan"])["method"]["name"].startswith("dreambooth")


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


@pytest.fixture(scope="module")
def demo(comfy, nodes):
    """Return the demo's MODEL, CLIP and VAE, prompts of its words, and a dataset of noise for them."""
    sockets, examples = nodes("nodes.sockets"), nodes("domaingallery_core.data.examples").Examples
    with torch.inference_mode():
        model, clip, vae = nodes("nodes.demo.sketchbook").load_sketchbook()
        prompts = nodes("nodes.data.prompts").DomainGalleryPrompts.execute(clip, "sks", "face")[0]
        noise = torch.randn(8, 24, 16, 16, generator=torch.Generator().manual_seed(0))
        part = sockets.LatentPart(source=examples(noise[:5]), target=examples(noise[5:]))
        dataset = sockets.LatentDataset((part,), vae)
    return SimpleNamespace(model=model, clip=clip, vae=vae, prompts=prompts, dataset=dataset, nodes=nodes)


def copies(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def on_demo(demo, method, **changes):
    """Run Train Baseline on the demo for two steps."""
    inputs = {"prompts": demo.prompts, "dataset": demo.dataset, "steps": 2}
    if method == "Textual Inversion":
        inputs["clip"] = demo.clip
    return baseline(demo.nodes, demo.model, method, **inputs | changes)


@pytest.fixture
def small(nodes):
    return nodes("nodes.sockets").TrainingOptions(batch_size=3)


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


def test_the_variants_of_domainstudio_differ(demo, small):
    runs = [
        on_demo(demo, "DomainStudio", variant=variant, options=small)
        for variant in ("published", "released", "published")
    ]

    assert same(runs[0][0], runs[2][0]) and not same(runs[0][0], runs[1][0])


def encoded(clip, text):
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


def test_a_new_word_learns_and_is_read_by_prompts_as_it_was_trained(demo, output, monkeypatch):
    """Only its vectors change; the file gives the very encoding that the last step would have had."""
    model, clip = weights_of(demo.model), copies(demo.clip.get_sd())
    own = demo.nodes("nodes.train.trained")
    words = []

    def noted(*given):
        words.append(own_word(*given))
        return words[-1]

    own_word = own.NewWord
    monkeypatch.setattr(own, "NewWord", noted)
    result = on_demo(demo, "Textual Inversion")
    with torch.no_grad():
        last = words[0].encode("a photo of a {}")[0][0]
    save = demo.nodes("nodes.files.saving").DomainGallerySaveEmbedding
    word, path = save.execute(result[4], "faces/new").result
    monkeypatch.setattr(demo.clip.tokenizer.clip_l, "embedding_directory", [str(output / "embeddings")])

    assert word == "embedding:faces/new_00001_" and path.endswith("faces/new_00001_.safetensors")
    assert result[4]["clip_l"].shape == (2, 128)
    assert torch.equal(encoded(demo.clip, f"a photo of a {word}"), last)
    assert not torch.equal(last, encoded(demo.clip, "a photo of a face face"))
    assert "Textual Inversion changes no weight" in result[0].message
    assert same(model, weights_of(demo.model)) and same(clip, demo.clip.get_sd())
    assert "load_model" not in vars(demo.clip)
    assert not any("forward" in vars(module) for module in demo.clip.cond_stage_model.modules())


def test_a_word_that_did_not_learn_is_encoded_as_itself(demo):
    tokens_kind = demo.nodes("domaingallery_core.trainables.tokens").Tokens
    words = demo.nodes("nodes.host.new_words")

    tokens = tokens_kind(words.first_vectors(demo.clip, "face", 2))
    new = words.NewWord(demo.clip, tokens, "face")

    with torch.inference_mode():
        found = new.encode("a painting in the style of {}, in oil")[0][0]
    assert torch.equal(found, encoded(demo.clip, "a painting in the style of face face, in oil"))


def test_every_template_fits_the_text_encoder_with_a_word_in_its_place(demo):
    templates = demo.nodes("domaingallery_core.methods.textual_inversion").TEMPLATES
    words = demo.nodes("nodes.host.new_words")
    new = words.NewWord(
        demo.clip,
        demo.nodes("domaingallery_core.trainables.tokens").Tokens({"clip_l": torch.ones(1, 128)}),
        "face",
    )

    for template in (*templates["object"], *templates["style"]):
        with torch.inference_mode():
            found = new.encode(template)[0][0]
        assert found.shape == (1, 24, 128)
        assert not torch.equal(found, encoded(demo.clip, template.format("face")))


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


def test_each_method_shows_its_own_fields(nodes):
    [choice] = [
        part for part in nodes("nodes.train.baseline").DomainGalleryBaseline.define_schema().inputs
        if part.id == "method"
    ]  # fmt: skip

    shown = {option.key: [part.id for part in option.inputs] for option in choice.options}

    length = {"steps", "learning_rate"}
    assert {name: set(ids) - {"clip", "text_encoder"} for name, ids in shown.items()} == {
        name: length | fields.keys() for name, fields in FIELDS.items()
    }
    assert [name for name, ids in shown.items() if "clip" in ids] == ["Textual Inversion"]
    assert [name for name, ids in shown.items() if "text_encoder" in ids] == ["DreamBooth"]
    assert all(part.tooltip.endswith(".") for option in choice.options for part in option.inputs)


def test_what_a_browser_sends_comes_as_the_fields_of_the_chosen_method(nodes, comfy):
    """By the functions with which the host gathers inputs; the fields of other methods are left out."""
    from comfy_api.latest import _io

    node = nodes("nodes.train.baseline").DomainGalleryBaseline
    fields = chosen("Textual Inversion")
    sent = {f"method.{name}": value for name, value in fields.items()} | {"method": fields["method"]}
    del sent["method.method"]

    found, _, known = _io.get_finalized_class_inputs(node.INPUT_TYPES(), sent | {"method.copies": "float32"})
    given = _io.build_nested_inputs(sent, known)

    assert given == {"method": fields | {"clip": None}}
    assert {"method.word", "method.steps"} <= found["required"].keys() and "method.clip" in found["optional"]
    assert "method.copies" not in found["required"] | found["optional"]


class StopsTheGradient(torch.nn.Module):
    def decode(self, latents):
        return latents[:, :3].detach().repeat_interleave(8, 2)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no method", "Expected method to be one of DreamBooth, DreamBooth LoRA, .*, got 'LoRA'"),
        ("no steps", "Expected steps to be a whole number"),
        ("no clip", "Expected the text encoder of the model, .*got none. Connect clip"),
        ("long word", "Expected a word of one token to begin with, got 'photosynthesiser' with"),
        ("two words", "Expected a word of one token to begin with, got 'red dog' with 2"),
        (
            "many vectors",
            "Expected captions of at most 24 tokens, got a longer one with 20",
        ),
        ("no VAE", "Expected the VAE of the model, .* got none. Connect"),
        ("no gradient", "Expected a VAE that decodes pictures with a gradient, got one that does not"),
        ("quantised", "Expected a model in float32, float16 or bfloat16 to train all its weights, got"),
        ("two images", "Expected a batch size of at least 3 for the image_similarity term, got 2"),
        ("other clip", r"text encoder of this model \(16 wide\), got 128"),
    ],
)
def test_what_cannot_work_is_named_and_changes_nothing(demo, nodes, errors, case, message, monkeypatch):
    model, given, changes = demo.model, demo, {}
    method = "DomainStudio" if case in ("no VAE", "no gradient", "two images") else "Textual Inversion"
    if case == "no method":
        method = "LoRA"
    elif case == "no steps":
        changes = {"steps": "many"}
    elif case == "no clip":
        changes = {"clip": None}
    elif case in ("long word", "two words"):
        changes = {"word": "photosynthesiser" if case == "long word" else " red dog "}
    elif case == "many vectors":
        changes = {"vectors": 20}
    elif case == "no VAE":
        changes = {"dataset": replace(demo.dataset, vae=None)}
    elif case == "no gradient":
        monkeypatch.setattr(demo.vae, "first_stage_model", StopsTheGradient())
    elif case == "quantised":
        method, model = "DreamBooth", tiny_model()
        layer = model.model.diffusion_model.middle_block[1].proj_in
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
        changes = {"prompts": training.tiny_prompts(nodes), "dataset": tiny_dataset(nodes)}
    elif case == "two images":
        changes = {"options": nodes("nodes.sockets").TrainingOptions(batch_size=2)}
    elif case == "other clip":
        model = tiny_model()
        changes = {"prompts": training.tiny_prompts(nodes), "dataset": tiny_dataset(nodes)}
    given = SimpleNamespace(**{**vars(demo), "model": model})
    before = weights_of(model)

    with pytest.raises(errors.DomainGalleryError, match=message):
        on_demo(given, method, **changes)
    assert same(before, weights_of(model)) and "load_model" not in vars(demo.clip)


@pytest.mark.parametrize("name", ["a b", "a,b", "[a]", "../a", ""])
def test_names_that_no_prompt_can_hold_are_refused(nodes, errors, name):
    embedding = nodes("nodes.sockets").TrainedEmbedding({"clip_l": torch.ones(1, 4)}, metadata={})

    with pytest.raises(errors.InputError, match=r"a prompt can hold|inside the folder output/embeddings"):
        nodes("nodes.files.saving").DomainGallerySaveEmbedding.execute(embedding, name)


def test_embeddings_of_one_and_of_two_text_encoders_are_filed_as_loaders_read_them(nodes, comfy, output):
    from comfy.sd1_clip import load_embed

    kind, save = (
        nodes("nodes.sockets").TrainedEmbedding,
        nodes("nodes.files.saving").DomainGallerySaveEmbedding,
    )
    vectors = {"clip_l": torch.rand(2, 768), "clip_g": torch.rand(2, 1280)}
    both, _ = save.execute(kind(vectors, metadata={"a": "b"}), "two").result
    alone, _ = save.execute(kind({"clip_l": vectors["clip_l"]}, metadata={}), "one").result
    folder = [str(output / "embeddings")]

    for width, name in ((768, "clip_l"), (1280, "clip_g")):
        found = load_embed(both.removeprefix("embedding:"), folder, width, name)
        assert torch.equal(found, vectors[name])
    assert torch.equal(load_embed(alone.removeprefix("embedding:"), folder, 768, "clip_l"), vectors["clip_l"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "Textual Inversion"}, "Expected the text encoder of the model, .*got none. Connect clip"),
        ({"method": "DreamBooth", "method.steps": 0}, "Expected steps to be a whole number from 1"),
        ({"method": "DreamBooth", "method.copies": "int8"}, "Expected copies to be one of float32, bfloat16"),
        (
            {"method": "DomainStudio", "options": ["small", 0]},
            "Expected a batch size of at least 3 for the image_similarity term, got 2",
        ),
        ({"method": "DreamBooth"}, None),
        ({"method": "DomainStudio", "method.variant": "released"}, None),
        ({"method": "Textual Inversion", "method.clip": ["demo", 1]}, None),
        ({"method": ["other", 0]}, None),
    ],
)
def test_a_graph_is_looked_at_before_anything_is_drawn(nodes, errors, changes, message):
    ahead, graphs = nodes("nodes.ahead.preflight"), nodes("nodes.ahead.prompt_graph")
    kept = {part.id: part.default for part in nodes("nodes.train.training_options").DomainGalleryOptions
            .define_schema().inputs}  # fmt: skip
    prompt = {
        "words": {
            "class_type": "DomainGalleryPrompts",
            "inputs": {"clip": ["demo", 1], "identifier": "sks", "category": "face"},
        },
        "demo": {"class_type": "DomainGalleryLoadDemo"},
        "other": {"class_type": "NoSuchNode"},
        "small": {"class_type": "DomainGalleryOptions", "inputs": kept | {"batch_size": 2}},
        "train": {"class_type": "DomainGalleryBaseline", "inputs": {"prompts": ["words", 0], **changes}},
    }

    def look():
        ahead.check_graph(graphs.PromptGraph(prompt, ["train"]), "train")

    if message is None:
        look()
    else:
        with pytest.raises(errors.InputError, match=message):
            look()


@pytest.mark.parametrize(("kind", "name"), [("SaveLora", "../x"), ("SaveEmbedding", "a b")])
def test_names_of_files_are_looked_at_before_anything_is_drawn(nodes, errors, kind, name):
    graph = nodes("nodes.ahead.prompt_graph").PromptGraph(
        {"save": {"class_type": f"DomainGallery{kind}", "inputs": {"name": name}}}, ["save"]
    )

    with pytest.raises(errors.InputError, match=r"inside the folder output/loras|that a prompt can hold"):
        nodes("nodes.ahead.preflight").check_graph(graph, "save")


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


@pytest.fixture(scope="module")
def sdxl(comfy, nodes):
    """Return a MODEL that reads what SDXL's text encoders give, and these with three layers each."""
    import comfy.sd
    import comfy.sdxl_clip

    three = {"num_hidden_layers": 3}
    target = SimpleNamespace(
        params={}, clip=comfy.sdxl_clip.SDXLClipModel, tokenizer=comfy.sdxl_clip.SDXLTokenizer
    )
    options = {"clip_l_model_config": three, "clip_g_model_config": three, "dtype": torch.float16}
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        clip = comfy.sd.CLIP(target, embedding_directory=[], model_options=options)
        for name, weight in clip.cond_stage_model.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        model = tiny_model(pooled=1280, context=2048)
        prompts = nodes("nodes.data.prompts").DomainGalleryPrompts.execute(clip, "sks", "dog")[0]
    return SimpleNamespace(model=model, clip=clip, prompts=prompts, nodes=nodes, dataset=tiny_dataset(nodes))


def test_both_text_encoders_of_sdxl_get_the_new_word(sdxl, output, monkeypatch):
    model, clip = weights_of(sdxl.model), copies(sdxl.clip.get_sd())
    own, words = sdxl.nodes("nodes.train.trained"), []
    own_word = own.NewWord
    monkeypatch.setattr(own, "NewWord", lambda *given: words.append(own_word(*given)) or words[-1])

    result = on_demo(sdxl, "Textual Inversion", vectors=3, templates="style", word="")
    word, path = sdxl.nodes("nodes.files.saving").DomainGallerySaveEmbedding.execute(result[4], "xl").result
    for tokenizer in (sdxl.clip.tokenizer.clip_l, sdxl.clip.tokenizer.clip_g):
        monkeypatch.setattr(tokenizer, "embedding_directory", [str(output / "embeddings")])
    with torch.inference_mode():
        [[context, pooled]] = words[0].encode("a painting in the style of {}")
        found = sdxl.clip.encode_from_tokens_scheduled(
            sdxl.clip.tokenize(f"a painting in the style of {word}")
        )

    assert {name: tuple(t.shape) for name, t in load_file(path).items()} == {
        "clip_l": (3, 768), "clip_g": (3, 1280),
    }  # fmt: skip
    assert torch.equal(found[0][0], context) and torch.equal(
        found[0][1]["pooled_output"], pooled["pooled_output"]
    )
    began = encoded(sdxl.clip, "a painting in the style of dog dog dog")
    for part in (slice(0, 768), slice(768, None)):  # each encoder reads what it learned
        assert not torch.equal(began[..., part], context[..., part])
    assert same(model, weights_of(sdxl.model)) and same(clip, sdxl.clip.get_sd())


@pytest.mark.parametrize("method", ["DreamBooth", "DreamBooth LoRA"])
def test_a_model_that_reads_a_size_and_a_pooled_embedding_trains(sdxl, method):
    before = weights_of(sdxl.model)

    result = on_demo(sdxl, method)

    assert all(bool(torch.isfinite(tensor).all()) for tensor in result[0].values())
    assert load_lora(sdxl.model, result[0]).patches and same(before, weights_of(sdxl.model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_weights_of_a_model_in_half_precision_learn_in_float32(comfy, nodes, dtype):
    model = tiny_model(dtype=dtype)
    before = weights_of(model)

    result = baseline(nodes, model, "DreamBooth")

    assert {tensor.dtype for tensor in result[0].values()} == {torch.float32}
    assert all(bool(tensor.any()) and bool(torch.isfinite(tensor).all()) for tensor in result[0].values())
    assert same(before, weights_of(model))


def test_what_all_weights_take_is_warned_of_where_there_is_less(nodes, model, monkeypatch, caplog):
    own = nodes("nodes.train.trained")
    monkeypatch.setattr(own.comfy.model_management, "get_free_memory", lambda *_: 2**20)

    baseline(nodes, model, "DreamBooth", steps=1)

    numbers = sum(weight.numel() for weight in model.model.diffusion_model.parameters())
    assert f"moments take {numbers * 16 / 2**30:.2g} GB beside the model" in caplog.text
    assert "set optimizer to adamw8bit" in caplog.text


def test_the_host_makes_copies_of_the_demo_model_for_its_own_training(demo):
    """The same weights in other tensors."""
    with torch.inference_mode():
        copy = demo.model.clone(force_deepcopy=True)

    assert copy.model is not demo.model.model and same(weights_of(copy), weights_of(demo.model))
