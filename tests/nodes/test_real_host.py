"""The nodes in a real host process: the main path, bad input at every node, and cancelling at every stage."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from PIL import Image

from domaingallery_core.files.writing import read_tensors
from tools.host.client import Event, Interrupted, PromptError

Prompt = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph() -> Prompt:
    """Return the main path in miniature: source images, both stages, a file, and a drawing."""
    guidance = {"cfg": 3.0, "positive": ["words", 1], "negative": ["words", 4], "prompts": ["words", 0]}
    return {
        "demo": node("DomainGalleryLoadDemo"),
        "words": node("DomainGalleryPrompts", clip=["demo", 1], identifier="sks", category="face"),
        "source": node(
            "DomainGallerySourceImages", model=["demo", 0], vae=["demo", 2], prompts=["words", 0], count=4,
            width=64, height=64, steps=2, cfg=3.0, sampler_name="euler", scheduler="normal", batch_size=2,
            seed=0,
        ),
        "target": node("DomainGalleryDemoImages", domain="blueprint", category="face", count=3, seed=0),
        "dataset": node(
            "DomainGalleryDataset", vae=["demo", 2], source_images=["source", 0], target_images=["target", 0]
        ),
        "options": node(
            "DomainGalleryOptions", rank=2, alpha=2.0, batch_size=3, prior_weight=1.0,
            disentanglement_weight=10.0, erasure_weight=10.0, similarity_weight=1.0,
            denoise_steps=1, offset_noise=0.0, accumulation=1, schedule="constant", warmup_steps=0, ema=0.0,
            min_snr=0.0, optimizer="adamw", precision="automatic",
        ),
        "erase": node(
            "DomainGalleryErase", model=["demo", 0], prompts=["words", 0], dataset=["dataset", 0], steps=2,
            learning_rate=1e-3, seed=0, options=["options", 0],
        ),
        "train": node(
            "DomainGalleryTrain", model=["demo", 0], prompts=["words", 0], dataset=["dataset", 0], steps=2,
            learning_rate=1e-3, seed=0, erased=["erase", 0], options=["options", 0],
        ),
        "save": node("DomainGallerySaveLora", lora=["train", 0], name="tests/sketch", key_format="comfyui"),
        "apply": node(
            "LoraModelLoader", model=["demo", 0], lora=["train", 0], strength_model=1.0, bypass=False
        ),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "draw": node(
            "DomainGalleryKSampler", model=["apply", 0], mode="VN-N", enhancement=0.5, seed=0, steps=2,
            sampler_name="euler", scheduler="normal", denoise=1.0, latent_image=["empty", 0], **guidance,
        ),
        "decode": node("VAEDecode", samples=["draw", 0], vae=["demo", 2]),
        "show": node("PreviewImage", images=["decode", 0]),
    }  # fmt: skip


def plain_drawing() -> Prompt:
    """Return a prompt that draws with the untouched MODEL."""
    prompt = {name: graph()[name] for name in ("demo", "words", "empty", "draw", "decode", "show")}
    prompt["draw"]["inputs"] |= {"model": ["demo", 0], "mode": "none"}
    return prompt


def drawn(client, outputs) -> bytes:
    """Return the pixels of the picture that a prompt left."""
    return Image.open(io.BytesIO(client.view(**outputs["show"]["images"][0]))).tobytes()


def files(host) -> set[str]:
    return {path.name for path in (host.output / "loras").rglob("*") if path.is_file()}


def test_the_main_path_runs_and_shows_what_it_does(host):
    """Losses of every term come back, progress and text are shown, and the file is where it says."""
    events: list[Event] = []
    prompt = graph()
    prompt["source"]["inputs"]["seed"] = 4711  # of no other test, so nothing is kept on disk

    outputs = host.client.run(prompt, on_event=events.append)

    assert {"target", "prior", "disentanglement", "similarity", "total"} == outputs["train"]["losses"][
        0
    ].keys()
    assert {"prior", "disentanglement", "erasure", "total"} == outputs["erase"]["losses"][0].keys()
    saved = outputs["save"]["loras"][0]
    assert (host.output / saved["subfolder"] / saved["filename"]).stat().st_size > 1000
    assert len(drawn(host.client, outputs)) == 64 * 64 * 3
    assert any(
        e.kind == "text" and e.node == "save" and 'trigger words: "a sks face"' in e.text for e in events
    )
    for name, total in (("source", 8), ("erase", 2), ("train", 2)):
        assert any(e.kind == "progress" and e.node == name and e.value == e.max == total for e in events)
        assert any(e.kind == "text" and e.node == name and "left" in e.text for e in events)


def test_both_formats_of_a_file_load_by_the_stock_loader(host):
    """A file of the training draws what the LORA_MODEL draws."""
    prompt = graph()
    prompt["kohya"] = node("DomainGallerySaveLora", lora=["train", 0], name="tests/kohya", key_format="kohya")
    outputs = host.client.run(prompt)
    expected = drawn(host.client, outputs)

    for name in ("save", "kohya"):
        file = outputs[name]["loras"][0]
        again = graph()
        again["apply"] = node(
            "LoraLoaderModelOnly", model=["demo", 0], strength_model=1.0,
            lora_name=f"{file['subfolder'].removeprefix('loras/')}/{file['filename']}",
        )  # fmt: skip
        kept = {"demo", "words", "apply", "empty", "draw", "decode", "show"}
        again = {key: value for key, value in again.items() if key in kept}
        assert drawn(host.client, host.client.run(again)) == expected


def test_a_training_begins_with_a_file(host):
    """Under the names of diffusers, which the host itself does not read; the node that saves it says so."""
    prompt = graph()
    prompt["save"]["inputs"]["key_format"] = "diffusers"
    saved = host.client.run(prompt)["save"]
    file = saved["loras"][0]
    begin = graph()
    begin["file"] = node(
        "DomainGalleryLoadLora", lora_name=f"{file['subfolder'].removeprefix('loras/')}/{file['filename']}"
    )
    begin["train"]["inputs"]["erased"] = ["file", 0]

    outputs = host.client.run(begin)

    assert "ComfyUI's own loaders do not know" in saved["text"][0]
    assert "left out" not in outputs["train"]["text"][0] and "begin anew" not in outputs["train"]["text"][0]
    trigger, _, layers = outputs["save"]["text"][0].splitlines()
    assert trigger == 'trigger words: "a sks face"' and layers.endswith("layers found in the model")


BAD = [
    ("words", {"identifier": " "}, "execution", "Expected an identifier"),
    ("words", {"identifier": "face"}, "execution", "differs from the category"),
    ("source", {"count": -1}, "validation", "smaller than min"),
    ("source", {"steps": -1}, "validation", "smaller than min"),
    ("dataset", {"source_images": None}, "validation", "missing"),
    ("dataset", {"target_images": None}, "execution", "images of the domain, got a dataset without them"),
    ("target", {"count": 1}, "execution", "at least 2 images of the domain, got 1"),
    ("source", {"count": 2}, "execution", "at least 3 source images of each category"),
    ("options", {"batch_size": 2}, "execution", "batch size of at least 3"),
    ("options", {"rank": 1000}, "execution", "rank of at most"),
    ("options", {"targets": "attn("}, "execution", "got none for 'attn('"),
    ("options", {"targets": "attn"}, "execution", "to select linear layers of UNetModel, got none"),
    ("options", {"adapter": "boft"}, "validation", "not in list"),
    ("train", {"options": ["other", 0]}, "execution", "Expected a LoHa to go on with, got a LoRA"),
    ("erase", {"steps": -1}, "validation", "smaller than min"),
    ("erase", {"learning_rate": -1.0}, "validation", "smaller than min"),
    ("train", {"options": ["narrow", 0]}, "execution", "rank of at least 2, that of the LoRA of the first"),
    ("train", {"learning_rate": 1.0, "steps": 10**9}, "validation", "bigger than max"),
    ("save", {"name": "../sketch"}, "execution", "inside the folder output/loras, got '../sketch'"),
    ("save", {"name": "/tmp/sketch"}, "execution", "inside the folder output/loras"),
    ("save", {"key_format": "onnx"}, "validation", "not in list"),
    ("draw", {"mode": "V"}, "validation", "not in list"),
    ("draw", {"enhancement": 100.0}, "validation", "bigger than max"),
]


@pytest.mark.parametrize(("name", "inputs", "stage", "message"), BAD)
def test_bad_input_is_an_error_on_its_node(host, name, inputs, stage, message):
    """The message says what to do, no file is left, and the host goes on."""
    before = files(host)
    prompt = graph()
    prompt["narrow"] = copy.deepcopy(prompt["options"])
    prompt["narrow"]["inputs"] |= {"rank": 1, "alpha": 1.0}
    prompt["other"] = copy.deepcopy(prompt["options"])
    prompt["other"]["inputs"] |= {"adapter": "loha"}
    if name == "draw":  # the host runs the outputs that are not affected
        del prompt["save"]
    prompt[name]["inputs"] = {
        key: value for key, value in (prompt[name]["inputs"] | inputs).items() if value is not None
    }

    with pytest.raises(PromptError) as caught:
        host.client.run(prompt)

    assert caught.value.stage == stage
    assert message in str(caught.value)
    assert files(host) == before
    assert host.alive()


def run_options(**changes: Any) -> dict[str, Any]:
    inputs = {
        "preview_every": 0, "preview_count": 1, "preview_steps": 2, "preview_cfg": 1.0, "validate_every": 0,
        "checkpoint_every": 0, "keep": 1, "resume": "automatic", "run_name": "",
        "gradient_checkpointing": "automatic",
        "offload": "automatic",
    }  # fmt: skip
    return node("DomainGalleryRunOptions", **inputs | changes)


def watched_graph() -> Prompt:
    """Return the main path with previews and a plot of stage 2, both shown."""
    prompt = graph()
    prompt["watch"] = run_options(preview_every=2, preview_count=2, validate_every=1)
    prompt["train"]["inputs"] |= {"run_options": ["watch", 0]}
    for name, slot in (("plot", 2), ("strip", 3)):
        prompt[name] = node("PreviewImage", images=["train", slot])
    return prompt


def test_previews_and_plot_are_shown_while_it_trains_and_after(host):
    events: list[Event] = []
    prompt = watched_graph()

    outputs = host.client.run(prompt, on_event=events.append)

    pictures = {name: outputs[name]["images"][0] for name in ("plot", "strip")}
    sizes = {name: Image.open(io.BytesIO(host.client.view(**p))).size for name, p in pictures.items()}
    assert sizes == {"plot": (800, 480), "strip": (2 * 64, 20 + 2 * 64)}
    assert any(e.kind == "preview" and e.node == "train" for e in events)
    assert any(e.kind == "text" and e.node == "train" and "rate 0.001" in e.text for e in events)
    assert list(outputs["train"]["validation"][0]) == ["0", "1", "2"]


def test_a_cancelled_training_goes_on_to_the_same_file(host):
    """The host's interrupt ends it; the same prompt, sent again, ends with the bytes of one sitting."""
    prompt = graph()
    prompt["train"]["inputs"] |= {"steps": 16, "seed": 7}
    prompt["options"]["inputs"]["similarity_weight"] = 0.0
    said: list[str] = []
    submission = host.client.submit(prompt)
    with pytest.raises(Interrupted), submission:
        for event in submission:
            if event.kind == "text" and event.node == "train":
                said.append(event.text)
            if event.kind == "progress" and event.node == "train" and event.value >= 3:
                submission.interrupt()

    kept = list((host.output / "domaingallery" / "checkpoints").rglob("step_*.safetensors"))
    goes_on = host.client.run(prompt)
    prompt["over"] = run_options(resume="start over", checkpoint_every=16)
    prompt["train"]["inputs"] |= {"run_options": ["over", 0]}
    in_one = host.client.run(prompt)

    assert any(path.name[5:11] >= "000003" for path in kept)
    assert any(
        text.startswith("stopped; kept in output/domaingallery/checkpoints/a_sks_face") for text in said
    )
    assert "gone on from step" in goes_on["train"]["text"][0]
    assert "gone on from step" not in in_one["train"]["text"][0]
    first, second = (read_tensors(host.output / saved["subfolder"] / saved["filename"])
                     for saved in (o["save"]["loras"][0] for o in (goes_on, in_one)))  # fmt: skip
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    assert all(tensor.equal(second[0][name]) for name, tensor in first[0].items())


def test_a_training_that_is_stopped_on_its_node_goes_on_with_what_it_learned(host):
    """What comes after it runs: the LoRA is saved. Nothing stops that does not train."""
    prompt = graph()
    prompt["train"]["inputs"] |= {"steps": 400, "seed": 8}
    prompt["options"]["inputs"]["similarity_weight"] = 0.0
    answers = []
    with host.client.submit(prompt) as submission:
        for event in submission:
            if event.kind == "progress" and event.node == "train" and event.value >= 3 and len(answers) < 2:
                answers += [
                    host.client.json("/domaingallery/stop", {"node": node}) for node in ("save", "train")
                ]
    outputs = submission.outputs

    assert answers == [{"stopped": False}, {"stopped": True}]
    assert outputs["train"]["text"][0].startswith("stopped after ")
    assert len(outputs["train"]["losses"][0]["total"]) < 400
    assert outputs["save"]["loras"]
    assert host.client.json("/domaingallery/stop", {"node": "train"}) == {"stopped": False}


@pytest.mark.parametrize("name", ["source", "erase", "train"])
def test_cancelling_keeps_the_model_and_leaves_no_file(host, name):
    """The next drawing is the same picture to the byte, and the same prompt then runs to its end."""
    before, expected = files(host), drawn(host.client, host.client.run(plain_drawing()))
    prompt = graph()
    prompt[name]["inputs"] |= {"steps": 1000, "seed": 99}

    submission = host.client.submit(prompt)
    with pytest.raises(Interrupted), submission:
        for event in submission:
            if event.kind == "progress" and event.node == name:
                submission.interrupt()

    assert files(host) == before
    host.client.free()
    assert drawn(host.client, host.client.run(plain_drawing())) == expected
    prompt[name]["inputs"] |= {"steps": 2}
    assert "show" in host.client.run(prompt)
