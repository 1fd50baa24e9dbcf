"""Both stages on SD1.x and SDXL checkpoints in their real file formats, through the stock loader."""

from __future__ import annotations

import io
import json
import math
import os

import pytest
from PIL import Image
from safetensors import safe_open

from tests.nodes.test_real_baselines import METHODS
from tests.nodes.thin import write_checkpoint
from tools.host.graphs import workflow_to_api
from tools.make.workflows import SHORT, make_workflows

ATTENTION = "transformer_blocks_0_attn1_to_out_0"
#: With whole weights, or through both text encoders, SDXL takes 12 GB, thin as it is.
LARGE = pytest.mark.skipif(
    "DOMAINGALLERY_LARGE_TESTS" not in os.environ, reason="takes 12 GB: set DOMAINGALLERY_LARGE_TESTS"
)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def taught(request, comfy, host):
    """Run the template that teaches a domain, with Load Checkpoint in place of Load Sketchbook Demo Model."""
    path = write_checkpoint(host.base / "models" / "checkpoints", request.param)
    info = host.client.object_info()
    workflow = json.loads(make_workflows(info, SHORT)["01 teach a domain"])
    prompt = workflow_to_api(workflow, info)
    only = {content["class_type"]: content for content in prompt.values()}
    only["DomainGalleryLoadDemo"] |= {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": path.name},
    }
    for name in of_type(prompt, "DomainGalleryOptions"):
        prompt[name]["inputs"] |= {"rank": 2, "alpha": 2.0, "batch_size": 3, "denoise_steps": 1}
    only["DomainGallerySaveLora"]["inputs"] |= {"name": f"thin/{request.param}", "key_format": "kohya"}
    yield request.param, prompt, host.client.run(prompt, timeout=500)
    host.client.free()
    path.unlink()


def of_type(prompt, class_type):
    return [name for name, content in prompt.items() if content["class_type"] == class_type]


@pytest.mark.timeout(900)
def test_erasure_and_finetuning_run(taught):
    """SDXL with its size conditioning and pooled text; every term of both stages is computed."""
    _, prompt, outputs = taught

    [erased], [trained] = (of_type(prompt, f"DomainGallery{name}") for name in ("Erase", "Train"))
    terms = {"prior", "disentanglement", "total"}
    assert set(outputs[erased]["losses"][0]) == terms | {"erasure"}
    assert set(outputs[trained]["losses"][0]) == terms | {"target", "similarity"}
    for name in (erased, trained):
        values = [value for term in outputs[name]["losses"][0].values() for value in term]
        assert len(values) >= 8 and all(math.isfinite(value) and value >= 0 for value in values)
    assert all(len(outputs[name]["images"]) == 1 for name in of_type(prompt, "SaveImage"))


@pytest.mark.timeout(900)
def test_the_saved_file_loads_by_every_key_and_draws_the_same(taught, host):
    """Kohya's names are those of diffusers for SD1.x and the original ones for SDXL."""
    family, prompt, outputs = taught
    file = outputs[of_type(prompt, "DomainGallerySaveLora")[-1]]["loras"][0]
    path = host.output / file["subfolder"] / file["filename"]
    loads = of_type(prompt, "LoraModelLoader")
    last = next(
        name for name in loads if prompt[name]["inputs"]["lora"][0] in of_type(prompt, "DomainGalleryTrain")
    )
    again = json.loads(json.dumps(prompt))
    again[last] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {
            "model": prompt[last]["inputs"]["model"],
            "strength_model": 1.0,
            "lora_name": f"{file['subfolder'].removeprefix('loras/')}/{file['filename']}",
        },
    }
    pictures = of_type(prompt, "SaveImage")
    shown = next(name for name in pictures if last in upstream(prompt, name))
    plain = next(name for name in pictures if not upstream(prompt, name) & set(loads))
    keep = upstream(again, shown) | {shown}
    logged = host.log.stat().st_size

    drawn = host.client.run({name: node for name, node in again.items() if name in keep}, timeout=500)

    with safe_open(path, framework="pt") as lora:
        names = set(lora.keys())
    first = "down_blocks_0_attentions_0" if family == "sd1" else "input_blocks_4_1"
    assert f"lora_unet_{first}_{ATTENTION}.lora_up.weight" in names
    assert "lora key not loaded" not in host.log.read_bytes()[logged:].decode(errors="replace")
    found = pixels(host, drawn, shown)
    assert found == pixels(host, outputs, shown)
    assert found != pixels(host, outputs, plain)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("taught", ["sdxl"], indirect=True)
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m == "DreamBooth LoRA" else LARGE) for m in METHODS]
)
def test_the_other_methods_train_and_save(taught, host, method):
    """All weights, a LoRA, all weights through the whole VAE, and a new word in each text encoder."""
    family, prompt, _ = taught
    train = of_type(prompt, "DomainGalleryTrain")[-1]
    given = {
        name: prompt[train]["inputs"][name] for name in ("model", "prompts", "dataset", "options", "seed")
    }
    fields = METHODS[method] | {"steps": 1, "learning_rate": 1e-4}
    if "clip" in fields:
        fields["clip"] = [given["model"][0], 1]
    inputs = {**given, "method": method, **{f"method.{name}": value for name, value in fields.items()}}
    word = method == "Textual Inversion"
    save = (
        {"class_type": "DomainGallerySaveEmbedding", "inputs": {"embedding": ["new", 4]}}
        if word
        else {"class_type": "DomainGallerySaveLora", "inputs": {"lora": ["new", 0], "key_format": "kohya"}}
    )
    save["inputs"]["name"] = f"thin/{family}_{method.replace(' ', '_').lower()}"
    again = {**prompt, "new": {"class_type": "DomainGalleryBaseline", "inputs": inputs}, "saved": save}
    kept = upstream(again, "saved") | {"saved"}

    outputs = host.client.run({name: node for name, node in again.items() if name in kept}, timeout=800)
    host.client.free()  # of what all weights take, before the next method

    values = [value for term in outputs["new"]["losses"][0].values() for value in term]
    assert values and all(math.isfinite(value) and value >= 0 for value in values)
    folder = host.output / ("embeddings" if word else "loras") / "thin"
    [path] = folder.glob(f"{family}_{method.replace(' ', '_').lower()}_0*.safetensors")
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    if word:
        assert names == {"clip_l", "clip_g"}
    else:
        assert all(name.startswith("lora_unet_") for name in names) and len(names) > 20


def upstream(prompt, name):
    """Return the nodes that a node depends on."""
    links = [value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)]
    return set(links).union(*(upstream(prompt, link) for link in links))


def pixels(host, outputs, name):
    """Return the picture that a node saved."""
    return Image.open(io.BytesIO(host.client.view(**outputs[name]["images"][0]))).tobytes()
