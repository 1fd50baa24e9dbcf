"""No input freezes a node, bloats the host, or ends in an error that does not say what to do."""

from __future__ import annotations

import math
import sys

import pytest

from tests.nodes.fuzz.values import Made

#: Seconds for random cases, shared by all nodes and files; the bench tries many more.
SECONDS = 30
NEW_WORD = {
    "method": "Textual Inversion", "steps": 2, "learning_rate": 1e-3, "word": "face", "vectors": 1,
    "templates": "object",
}  # fmt: skip
#: What once ended otherwise, each with the error that it is now; None for success.
CORPUS = [
    ("DomainGalleryPrompts", {"clip": None}, "Expected clip to be a text encoder, got nothing"),
    ("DomainGalleryPrompts", {"clip": 3}, "Expected clip to be a text encoder, got 3"),
    ("DomainGalleryPrompts", {"clip": Made("clip", ("empty",))}, "Expected the prompt .* got none"),
    ("DomainGalleryPrompts", {"clip": Made("clip", ("nan",))}, "not finite"),
    ("DomainGallerySweep", {"positive": []}, "Expected a positive conditioning, got an empty one"),
    ("DomainGallerySourceImages", {"model": "word"}, "Expected model to be a model, got 'word'"),
    ("DomainGallerySourceImages", {"steps": None}, "Expected steps to be a whole number .* got nothing"),
    ("DomainGallerySourceImages", {"prompts": True}, "Expected prompts to be prompts of Domain Prompts"),
    (
        "DomainGallerySourceImages",
        {"vae": Made("vae", ("flat",))},
        "Expected images from the VAE, got a tensor",
    ),
    ("DomainGallerySourceImages", {"vae": Made("vae", ("nan",))}, "pixels that are not finite"),
    ("DomainGallerySourceImages", {"model": Made("model", ("nan",))}, "latents that are not finite"),
    ("DomainGalleryDataset", {"vae": []}, "Expected vae to be a VAE, got nothing"),
    ("DomainGalleryDataset", {"prompts": None}, None),
    ("DomainGalleryDataset", {"vae": Made("vae", ("nan",))}, "Expected (finite latents|images) from the VAE"),
    ("DomainGalleryDataset", {"vae": Made("vae", ("empty",))}, "latents from the VAE, one of each of"),
    (
        "DomainGalleryTrain",
        {"options": 0.5},
        "Expected options to be options of Domain Training Options, got 0.5",
    ),
    ("DomainGalleryTrain", {"erased": {"a": 1}}, "Expected erased to hold tensors by names, got 1 by 'a'"),
    ("DomainGalleryTrain", {"erased": Made("lora", ("nan",))}, "Expected erased of plain numbers"),
    ("DomainGalleryOptions", {"targets": "*a" * 1000 + "b"}, None),
    ("DomainGalleryRunOptions", {"preview_cfg": 10**400}, "got a number of 1329 bits"),
    ("DomainGalleryRunOptions", {"preview_cfg": math.nan}, "Expected preview_cfg to be a finite number"),
    (
        "DomainGalleryLoadLora",
        {"lora_name": "gone"},
        "Expected (a file 'gone' in the|lora_name to be one of)",
    ),
    ("DomainGallerySaveLora", {"name": "a\0b"}, r"got the character U\+0000"),
    ("DomainGallerySaveLora", {"name": "\ud800"}, r"got the character U\+D800"),
    ("DomainGallerySaveLora", {"lora": Made("lora", ("odd names",))}, r"each name in lora .* U\+0000"),
    ("DomainGalleryGuider", {"start_percent": None}, None),
    ("DomainGalleryKSampler", {"latent_image": {}}, "Expected latent_image to hold latents .* got nothing"),
    (
        "DomainGalleryKSampler",
        {"latent_image": Made("latent", (Made("tensor", ((1, 4, 8, 8), "float32", "nan")), "none"))},
        "Expected latent_image of plain numbers",
    ),
    (
        "DomainGalleryKSampler",
        {"positive": Made("conditioning", (Made("tensor", ((1, 6, 16),)), "no options"))},
        "Expected positive to be encoded text, got a list",
    ),
    (
        "DomainGalleryKSampler",
        {"positive": Made("conditioning", (None, "no text"))},
        r"Expected prompts of the text encoder of this model \(16 wide\), got 0",
    ),
    (
        "DomainGalleryKSampler",
        {"latent_image": Made("latent", (Made("tensor", ((1, 4, 8, 8, 3),)), "none"))},
        "Expected latents of this model, with 4 channels and 2 dimensions, got a tensor",
    ),
    (
        "DomainGalleryKSampler",
        {"model": Made("model", ("pooled",))},
        "with a pooled embedding, as this model",
    ),
    (
        "DomainGalleryKSampler",
        {"model": Made("model", ("nan",))},
        "Expected latents of plain numbers from the",
    ),
    (
        "DomainGallerySweep",
        {"positive": Made("conditioning", (Made("tensor", ((6, 16),)), "twice"))},
        "Expected positive to be encoded text, got a list",
    ),
    ("DomainGalleryKSampler", {"denoise": 1e-300}, "Expected denoise to be 0 or at least 2e-05 for 2 steps"),
    ("DomainGalleryBaseline", {"method": {"a": 1}}, "Expected method to be one of DreamBooth, .*got nothing"),
    (
        "DomainGalleryBaseline",
        {"method": NEW_WORD | {"clip": Made("clip", ("",))}},
        "Expected the CLIP text encoders of Stable Diffusion or SDXL, got Clip with nothing",
    ),
    (
        "DomainGallerySaveEmbedding",
        {"embedding": Made("embedding", (Made("tensor", ((2, 16), "float32", "nan")), "clip_l"))},
        "Expected finite vectors",
    ),
    ("DomainGalleryDemoImages", {"count": 2**70}, "Expected count to be a whole number from 1 to 1000"),
]


@pytest.fixture(scope="module")
def world(nodes, comfy, tmp_path_factory):
    """Return what runs cases, and a folder for their output."""
    from tests.nodes.fuzz.files import Files, picture  # they import the host
    from tests.nodes.fuzz.running import Fuzz

    folder, paths = tmp_path_factory.mktemp("fuzz"), sys.modules["folder_paths"]
    before = paths.get_output_directory(), paths.get_input_directory()
    paths.set_output_directory(str(folder / "output"))
    paths.set_input_directory(str(folder / "input"))
    (folder / "input" / "pictures").mkdir(parents=True)
    (folder / "input" / "pictures" / "one.png").write_bytes(picture("PNG", "RGB", (64, 64)))
    fuzz = Fuzz(nodes)
    yield fuzz, Files(fuzz, folder / "output")
    paths.set_output_directory(before[0])
    paths.set_input_directory(before[1])


@pytest.fixture(autouse=True)
def own_folder(world, monkeypatch):
    monkeypatch.setattr(sys.modules["folder_paths"], "output_directory", str(world[1].output))


@pytest.mark.parametrize(("name", "changes", "text"), CORPUS, ids=lambda value: str(value)[:40])
def test_what_once_ended_otherwise(world, name, changes, text):
    fuzz = world[0]
    end, problem = fuzz.run((name, changes))

    assert problem == ""
    if text is None:
        assert end == "success"
    else:
        with pytest.raises(fuzz.error, match=text):
            fuzz.call((name, changes))


def test_random_cases_end_as_they_may(world):
    from tests.nodes.fuzz.graphs import graphs, look
    from tests.nodes.fuzz.running import attempts

    fuzz, files = world
    tried = {name: (fuzz.cases(name), fuzz.run) for name in fuzz.classes} | files.kinds()
    tried["graph"] = graphs(fuzz), lambda graph: look(fuzz, graph)
    for name, (cases, run) in tried.items():
        ends, problems = attempts(cases, run, 40, 1, SECONDS / len(tried))

        assert ends.total() > 0, name
        assert not problems, name


def test_what_is_wrong_is_seen(world, nodes, monkeypatch):
    """A crash, a message without a way out, an endless loop and a damaged LoRA are no allowed ends."""
    from tests.nodes.fuzz import running

    fuzz, _ = world
    monkeypatch.setattr(running, "SECONDS", 1)
    error = nodes("domaingallery_core.errors").InputError

    def raises(found):
        def call():
            raise found

        return fuzz.ended(call)

    def endless():
        while True:
            pass

    assert raises(IndexError("x")) == ("other", "IndexError: x")
    assert "what to do" in raises(error("Expected a, got b."))[1]
    assert "plain words" in raises(error("Expected a, got \ud800. Do c."))[1]
    assert raises(error("Expected a, got b. Do c.")) == ("InputError", "")
    assert fuzz.ended(endless) == ("other", "no end after 1 s")
    damaged = type(
        "Output", (), {"result": ({"a": Made}, {"a": fuzz.make(Made("tensor", ((2,), "float32", "nan")))})}
    )
    assert fuzz.ended(damaged) == ("success", "weights that are not finite")
