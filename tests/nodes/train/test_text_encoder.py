"""A LoRA on the text encoder beside that of the network: both learn, and load by the stock loaders."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes.baselines import copies, encoded, on_demo
from tests.nodes.files.test_saving import save
from tests.nodes.tiny import host_module, same, weights_of

TEXT = "text_encoders."


def run(given, **changes):
    """Run Train Domain LoRA with a text encoder, for two steps; `given` has what it reads."""
    options = {"batch_size": 3, "denoise_steps": 1} | changes.pop("own", {})
    inputs = {
        "prompts": given.prompts, "dataset": given.dataset, "steps": 2, "learning_rate": 1e-2, "seed": 0,
        "options": given.nodes("nodes.sockets").TrainingOptions(**options), "text_encoder": given.clip,
    }  # fmt: skip
    with torch.inference_mode():
        node = given.nodes("nodes.train.training").DomainGalleryTrain
        return node.execute(model=given.model, **inputs | changes)


def of_text(lora):
    return {name: tensor for name, tensor in lora.items() if name.startswith(TEXT)}


def modules_of(clip):
    """Return every module of a text encoder, with what it has been given besides its own."""
    found = [(name, id(module)) for name, module in clip.cond_stage_model.named_modules()]
    return found, [sorted(vars(module)) for module in clip.cond_stage_model.modules()], sorted(vars(clip))


@pytest.fixture
def last(nodes, monkeypatch):
    """Return a function that tells what text encoders made of prompts when trainings ended."""
    own, found = nodes("nodes.train.text_encoder").TrainedAdapters, {}
    result = own.result

    def noted(self, trainable, state):
        with torch.no_grad():
            for words in self.prompts.categories:
                for text in (words.target_text, words.source_text):
                    [[context, extra]] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
                    found[text] = context, extra["pooled_output"]
        return result(self, trainable, state)

    monkeypatch.setattr(own, "result", noted)
    return found


def loaded(given, path):
    """Return MODEL and CLIP with a file on them, by the host's loader."""
    with torch.inference_mode():
        state = host_module("comfy.utils").load_torch_file(path, safe_load=True)
        return host_module("comfy.sd").load_lora_for_models(given.model, given.clip, state, 1.0, 1.0)


def test_both_learn_and_both_are_as_they_were(demo):
    model, clip, modules = weights_of(demo.model), copies(demo.clip.get_sd()), modules_of(demo.clip)

    result = run(demo)

    text = of_text(result[0])
    assert len(text) == 2 * 4 * 3 and len(result[0]) == len(text) + 3 * 56
    assert all(bool(tensor.any()) for tensor in result[0].values())
    assert same(model, weights_of(demo.model)) and same(clip, demo.clip.get_sd())
    assert modules == modules_of(demo.clip)
    assert result[0].metadata["ss_text_encoder_lr"] == "0.01"


def test_without_one_it_is_frozen_and_the_lora_is_as_before(demo):
    alone = run(demo, text_encoder=None)[0]

    assert not of_text(alone) and "ss_text_encoder_lr" not in alone.metadata
    assert same(alone, run(demo, text_encoder=None)[0])
    assert not same(alone, {name: t for name, t in run(demo)[0].items() if not name.startswith(TEXT)})


def test_the_frozen_model_reads_frozen_prompts(demo, monkeypatch):
    """Prompts are encoded with a gradient where they are learned from, and without the LoRA where not."""
    own, seen = demo.nodes("nodes.train.trained"), []
    encode, together = own.encoded, demo.nodes("domaingallery_core.trainables.together").Adapters
    switch, depth = together.off, []

    @contextmanager
    def off(self):
        with switch(self):
            depth.append(1)
            yield
            depth.pop()

    def noted(clip, text):
        found = encode(clip, text)
        seen.append((text, bool(depth), found[0][0].requires_grad, found[0][0].detach().clone()))
        return found

    monkeypatch.setattr(together, "off", off)
    monkeypatch.setattr(own, "encoded", noted)
    run(demo, own={"weights": {"similarity": 0.0}})

    learned = [each for each in seen if each[2]]
    frozen = [each for each in seen if each[1]]
    assert {text for text, *_ in learned} == {"a sks face", "a face"}
    assert {text for text, *_ in frozen} == {"a face"} and not any(gradient for _, _, gradient, _ in frozen)
    assert all(torch.equal(context, encoded(demo.clip, "a face")) for *_, context in frozen)
    assert not torch.equal(learned[-1][-1], encoded(demo.clip, learned[-1][0]))


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize("key_format", ["comfyui", "kohya"])
def test_a_file_of_both_loads_by_every_key_onto_both(exact, output, caplog, last, kind, key_format):
    """The stock loader: the text encoder gives what it gave when the training ended."""
    trained = run(exact, own={"kind": kind, "rank": 2, "alpha": 3.0})
    path = save(exact.nodes, trained[0], key_format=key_format)

    model, clip = loaded(exact, path[0])

    assert "lora key not loaded" not in caplog.text
    assert len(clip.patcher.patches) == 8 and len(model.patches) == 56
    assert "64 of 64 layers found in the model" in path.ui["text"][0]
    plain = encoded(exact.clip, "a sks face")
    for text, (context, _) in last.items():
        torch.testing.assert_close(encoded(clip, text), context, rtol=1e-4, atol=1e-4)
    assert float((last["a sks face"][0] - plain).abs().max()) > 1e-2
    assert torch.equal(plain, encoded(exact.clip, "a sks face"))


@pytest.mark.parametrize("key_format", ["comfyui", "kohya", "diffusers"])
def test_files_have_the_names_that_others_read(demo, output, key_format):
    beginning = {
        "comfyui": "text_encoders.clip_l.transformer.text_model.encoder.layers.1.self_attn.out_proj.lora_A",
        "kohya": "lora_te_text_model_encoder_layers_1_self_attn_out_proj.lora_down",
        "diffusers": "text_encoder.text_model.encoder.layers.1.self_attn.out_proj.lora_A",
    }[key_format]

    names = load_file(save(demo.nodes, run(demo)[0], key_format=key_format)[0]).keys()

    assert f"{beginning}.weight" in names
    assert len([name for name in names if name.startswith(beginning.partition("text_model")[0])]) == (
        16 if key_format == "diffusers" else 24
    )


@pytest.mark.parametrize(("targets", "layers"), [("attention+feedforward", 12), ("attn2.to_*", 8)])
def test_as_many_layers_learn_as_of_the_network_and_attention_where_those_are_named(demo, targets, layers):
    text = of_text(run(demo, own={"targets": targets}, steps=1)[0])

    assert len(text) == 3 * layers


def test_it_has_a_learning_rate_of_its_own(demo):
    """The first step of AdamW goes as far as the rate says."""
    own = {"text_encoder_rate": 1e-4, "weights": {"similarity": 0.0, "disentanglement": 0.0}}

    lora = run(demo, steps=1, own=own)[0]

    text, network = (
        max(float(t.abs().max()) for n, t in lora.items() if "lora_B" in n and n.startswith(TEXT) == own)
        for own in (True, False)
    )
    assert text == pytest.approx(1e-4, rel=1e-2) and network == pytest.approx(1e-2, rel=1e-2)
    assert lora.metadata["ss_text_encoder_lr"] == "0.0001"


@pytest.mark.parametrize("rate", [0.0, 1e-4])
def test_a_cancelled_training_goes_on_to_the_same_bytes(demo, cancel_at, rate):
    options = {"steps": 3, "own": {"text_encoder_rate": rate, "ema": 0.5}}
    expected = run(demo, **options)
    cancel_at(2)
    with pytest.raises(host_module("comfy.model_management").InterruptProcessingException):
        run(demo, **options)
    cancel_at(1000)

    result = run(demo, **options)

    assert "gone on from step 2" in result.ui["text"][0]
    assert same(result[0], expected[0]) and result[1] == expected[1]


def test_a_file_begins_both_and_without_a_text_encoder_its_part_is_left_out(demo, output):
    shape = {"rank": 2, "alpha": 4.0}  # a scale that diffusers' files have multiplied in, without rounding
    first = run(demo, own=shape)[0]
    expected = run(demo, erased=first, own=shape)[0]

    for key_format in ("comfyui", "kohya", "diffusers"):
        file = load_file(save(demo.nodes, first, key_format=key_format)[0])
        again = run(demo, erased=file, own=shape)
        assert same(again[0], expected) and "left out" not in again.ui["text"][0]
    alone = run(demo, erased=first, options=None, text_encoder=None)
    assert not of_text(alone[0])
    assert "24 names are of no layer that learns here and are left out" in alone.ui["text"][0]


def test_a_lora_of_the_network_alone_begins_without_a_word_about_the_text_encoder(demo):
    erased = run(demo, text_encoder=None)[0]

    result = run(demo, erased=erased)

    assert of_text(result[0]) and "begin anew" not in result.ui["text"][0]


def test_the_other_nodes_for_loras_take_one_as_well(demo):
    with torch.inference_mode():
        subject = demo.nodes("nodes.train.subject").DomainGallerySubject.execute(
            demo.model, demo.prompts, demo.dataset, 2, 1e-2, 0, text_encoder=demo.clip
        )[0]
    by_baseline = on_demo(demo, "DreamBooth LoRA", text_encoder=demo.clip, learning_rate=1e-2)[0]

    assert of_text(subject) and same(subject, by_baseline)


def test_both_text_encoders_of_sdxl_learn_and_load(sdxl, output, caplog):
    model, clip = weights_of(sdxl.model), copies(sdxl.clip.get_sd())

    lora = run(sdxl, learning_rate=1e-3)[0]
    files = {name: save(sdxl.nodes, lora, key_format=name)[0] for name in ("comfyui", "kohya", "diffusers")}

    assert same(model, weights_of(sdxl.model)) and same(clip, sdxl.clip.get_sd())
    names = {name: load_file(path).keys() for name, path in files.items()}
    assert len(of_text(lora)) == 2 * 3 * 4 * 3
    for key_format, beginnings in (
        ("kohya", ("lora_te1_text_model_", "lora_te2_text_model_")),
        ("diffusers", ("text_encoder.text_model.", "text_encoder_2.text_model.")),
    ):
        counts = [sum(name.startswith(each) for name in names[key_format]) for each in beginnings]
        assert counts == ([24, 24] if key_format == "diffusers" else [36, 36])
    for path in (files["comfyui"], files["kohya"]):
        _, with_it = loaded(sdxl, path)
        assert len(with_it.patcher.patches) == 24
        for part in (slice(0, 768), slice(768, None)):
            found, plain = encoded(with_it, "a sks dog"), encoded(sdxl.clip, "a sks dog")
            assert not torch.equal(found[..., part], plain[..., part])
    assert "lora key not loaded" not in caplog.text


def test_a_text_encoder_of_another_kind_is_refused_and_nothing_changes(demo, errors):
    model = weights_of(demo.model)

    class Other:
        """A T5 alone."""

        cond_stage_model = torch.nn.Linear(1, 1)

        def tokenize(self, text):
            return {"t5xxl": [[(0, 1.0)]]}

        def encode_from_tokens_scheduled(self, tokens):
            raise NotImplementedError

    with pytest.raises(errors.InputError, match=r"text encoders of Stable Diffusion or SDXL, got Other"):
        run(demo, text_encoder=Other())
    assert same(model, weights_of(demo.model))


def test_a_text_encoder_of_another_width_is_refused_and_both_are_as_they_were(demo, sdxl, errors):
    model, clip, modules = weights_of(demo.model), copies(sdxl.clip.get_sd()), modules_of(sdxl.clip)

    with pytest.raises(errors.InputError, match=r"text encoder of this model \(128 wide\), got 2048"):
        run(demo, text_encoder=sdxl.clip)

    assert same(model, weights_of(demo.model)) and same(clip, sdxl.clip.get_sd())
    assert modules == modules_of(sdxl.clip)
