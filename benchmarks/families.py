"""Train, draw and save on every family of models: python -m benchmarks.families --host COMFYUI [FAMILY ...]

For each family a thin model with random weights is written in its real file layout and loaded by the host's
own loader. Both stages run for two steps, with all terms; the LoRA is saved in each key format. A row says
how many layers learned, seconds a step of each stage, and, as a share of the largest number:

effect    how far the trained model is from the base
file      how far the model with a saved LoRA, loaded by the host, is from the model with the trained adapter
batch     how far rows under equal prompts in a batch are from each alone
Eq. 6     how far an enhanced step is from the formula on rows that are evaluated one by one

and how many layers of the files matched the model, and in which key formats there are any. Exit 1 where a
limit is not kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tests.nodes.tiny  # noqa: F401  before the host's own `tests` can be found
from benchmarks.unet_denoiser import enter_host_on_cpu, find_host
from tests.nodes.thin import write_checkpoint
from tests.nodes.thin_models import MODELS, write_model
from tools.host.client import HostClient, PromptError
from tools.host.process import HostProcess

#: Written as whole checkpoints, with text encoder and VAE.
CHECKPOINTS = ("sd1", "sdxl")
#: Latents of a side for the checkpoints, and how long each stage is trained.
LATENTS, STEPS = 16, 2
#: The largest shares of a difference that are allowed, in float32, and the least effect that tells them.
LIMITS = {"file": 1e-5, "batch": 1e-5, "Eq. 6": 1e-5}
LEAST_EFFECT = 1e-3
HEADER = f"{'family':14}{'model':16}{'layers':>7}{'erase s':>9}{'train s':>9}" + "".join(
    f"{name:>10}" for name in ("effect", *LIMITS, "matched")
)

Prompt = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return a node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


@dataclass(slots=True)
class Row:
    """Hold what was found for a family."""

    family: str
    model: str = ""
    layers: int = 0
    seconds: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    matched: str = ""
    formats: list[str] = field(default_factory=list)
    losses: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    error: str = ""

    @property
    def kept(self) -> bool:
        """Tell whether all limits are kept."""
        kept = not self.error and all(self.shares[name] <= limit for name, limit in LIMITS.items())
        return kept and self.shares["effect"] >= LEAST_EFFECT

    def __str__(self) -> str:
        if self.error:
            return f"{self.family:14}{self.error}"
        numbers = "".join(f"{seconds:9.2f}" for seconds in self.seconds)
        shares = "".join(f"{share:10.1e}" for share in self.shares.values())
        end = f"{self.matched:>10}  {' '.join(self.formats)}"
        return f"{self.family:14}{self.model:16}{self.layers:7}{numbers}{shares}{end}"


def prepare(base: Path) -> None:
    """Put the test nodes where a host with this base directory finds them."""
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parents[1] / "tests" / "family_nodes.py", base / "custom_nodes")


def try_family(host: HostProcess, family: str, formats: list[str]) -> Row:
    """Return the row of a family; its model is removed afterwards."""
    row, client, models = Row(family), host.client, host.base / "models"
    path = None
    try:
        if family in CHECKPOINTS:
            path = write_checkpoint(models / "checkpoints", family)
            loading = {"model": node("CheckpointLoaderSimple", ckpt_name=path.name)}
            clip, vae = ["model", 1], ["model", 2]
        else:
            path = write_model(models / "diffusion_models", family)
            loading, clip, vae = thin_parts(family, path), ["clip", 0], ["vae", 0]
        prompt = training(loading, clip, vae, family)
        outputs = client.run(prompt, timeout=1800)
        row.seconds = [outputs[name]["seconds"][0] / STEPS for name in ("erase", "train")]
        row.losses = {name: outputs[name]["losses"][0] for name in ("erase", "train")}
        paths = [path for name in formats if (path := saved(host, prompt, family, name, row)) is not None]
        look = node(
            "TestFamily", model=["model", 0], prompts=["words", 0], lora=["train", 0],
            latent=["noise", 0], files="\n".join(map(str, paths)),
        )  # fmt: skip
        found = client.run(prompt | {"look": look}, timeout=1800)["look"]
        row.model, row.layers = found["model"][0], found["layers"][0]
        row.shares = {
            "effect": found["effect"][0],
            "file": max(found["differences"]),
            "batch": found["batch"][0],
            "Eq. 6": max(found["enhancement"]),
        }
        known, matched = (sum(numbers) for numbers in zip(*found["keys"], strict=True))
        row.matched = f"{matched}/{known}"
        if matched != known:
            row.error = f"{known - matched} layers of the files match nothing in the model"
    except PromptError as error:
        row.error = str(error)
    finally:
        client.free()
        if path is not None:
            path.unlink(missing_ok=True)
    return row


def thin_parts(family: str, path: Path) -> Prompt:
    """Return the nodes that load a thin model, and a text encoder and VAE that fit it."""
    thin, (channels, ratio, frames) = MODELS[family], MODELS[family].latent
    return {
        "model": node("UNETLoader", unet_name=path.name, weight_dtype="default"),
        "clip": node(
            "TestTextEncoder", width=thin.context, pooled=thin.pooled, length=thin.length,
            whole_numbers=thin.whole_numbers,
        ),
        "vae": node("TestVae", channels=channels, ratio=ratio, frames=frames),
    }  # fmt: skip


def training(loading: Prompt, clip: list[Any], vae: list[Any], family: str) -> Prompt:
    """Return a prompt that trains both stages on what a model draws itself, and draws enhanced."""
    side = LATENTS * 8
    if family not in CHECKPOINTS:
        side = MODELS[family].side * MODELS[family].latent[1]
    common = {"model": ["model", 0], "prompts": ["words", 0], "dataset": ["data", 0], "seed": 0}
    sampling = {"steps": 2, "sampler_name": "euler", "scheduler": "simple", "seed": 0}
    prompt = loading | {
        "words": node("DomainGalleryPrompts", clip=clip, identifier="sks", category="face"),
        "sources": node(
            "DomainGallerySourceImages", model=["model", 0], vae=vae, prompts=["words", 0], count=3,
            width=side, height=side, cfg=3.0, batch_size=0, **sampling,
        ),
        "data": node(
            "DomainGalleryDataset", vae=vae, source_images=["sources", 0], target_images=["sources", 1]
        ),
        "options": node("DomainGalleryOptions", **OPTIONS),
        "erase": node(
            "DomainGalleryErase", steps=STEPS, learning_rate=1e-3, options=["options", 0], **common
        ),
        "train": node(
            "DomainGalleryTrain", steps=STEPS, learning_rate=1e-3, options=["options", 0],
            erased=["erase", 0], **common,
        ),
        "noise": node("VAEEncode", pixels=["one", 0], vae=vae),
        "one": node("EmptyImage", width=side, height=side, batch_size=1, color=0),
        "taught": node("LoraModelLoader", model=["model", 0], lora=["train", 0], strength_model=1.0,
                       bypass=False),
        "draw": node(
            "DomainGalleryKSampler", model=["taught", 0], positive=["words", 1], negative=["words", 4],
            prompts=["words", 0], mode="V-uncond", cfg=3.0, enhancement=1.0, denoise=1.0,
            latent_image=["noise", 0], **sampling,
        ),
        "drawn": node("SaveLatent", samples=["draw", 0], filename_prefix=f"drawn/{family}"),
    }  # fmt: skip
    return prompt


def saved(host: HostProcess, prompt: Prompt, family: str, key_format: str, row: Row) -> Path | None:
    """Return a file of the trained LoRA in a format; None where the host or diffusers has no such names."""
    name = f"{family}/{key_format}"
    if key_format == "diffusers" and family.startswith("sd") and family != "sd3":
        return None  # of a UNet, diffusers alone reads them
    save = node("DomainGallerySaveLora", lora=["train", 0], name=name, key_format=key_format)
    try:
        [file] = host.client.run(prompt | {"save": save})["save"]["loras"]
    except PromptError as error:
        if "a diffusers name for every layer" not in str(error):
            raise
        return None
    row.formats.append(key_format)
    return host.output / file["subfolder"] / file["filename"]


#: All else as the nodes have it by default.
OPTIONS = {
    "rank": 4, "alpha": 4.0, "batch_size": 3, "prior_weight": 1.0, "disentanglement_weight": 10.0,
    "erasure_weight": 10.0, "similarity_weight": 1.0, "denoise_steps": 2, "offset_noise": 0.0,
}  # fmt: skip


def key_formats(client: HostClient) -> list[str]:
    """Return the key formats that Save Trained LoRA offers."""
    kind, options = client.object_info("DomainGallerySaveLora")["DomainGallerySaveLora"]["input"]["required"][
        "key_format"
    ]
    return list(options["options"] if isinstance(kind, str) else kind)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.families", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("families", nargs="*", default=[*CHECKPOINTS, *MODELS], metavar="FAMILY")
    arguments = parser.parse_args()
    path, rows = find_host(arguments.host), []
    enter_host_on_cpu(path)
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        with HostProcess(path, base_directory=Path(folder), cpu=True) as host:
            formats = key_formats(host.client)
            for family in arguments.families:
                started = time.perf_counter()
                rows.append(try_family(host, family, formats))
                print(rows[-1], f" {time.perf_counter() - started:5.0f} s", flush=True)
    print(f"{sum(row.kept for row in rows)} of {len(rows)} families keep all limits")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
