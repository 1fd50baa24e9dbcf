"""New words: trained, saved, and read by prompts as they were trained."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes.baselines import copies, encoded, load_lora, on_demo
from tests.nodes.tiny import same, weights_of


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
