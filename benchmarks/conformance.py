"""Hold the method against numbers of the authors' released code.

    python benchmarks/conformance.py FOLDER... [--host DIR]

Each folder is laid out as in tests/reference_vectors/README.md. The numbers are computed twice: `core` puts
the host's UNet in float64 behind the core's denoiser, `host` goes through the nodes' wrapper of a MODEL, and
through their guider, in float32. A line per quantity has the relative error, which is the L2 norm of the
difference over the norm. Then comes the worst of each kind. The exit status is 1 when one is too large.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.host_form import HostForm
from benchmarks.reference import GUIDANCE_SCALE, Reference
from benchmarks.unet_denoiser import UNetDenoiser, enter_host_on_cpu, find_host, host_unet
from domaingallery_core.generators import generator
from domaingallery_core.guidance import enhance
from domaingallery_core.methods import noised_batch
from domaingallery_core.methods.domaingallery import denoised_pair
from domaingallery_core.model.denoiser import Condition, Conditions, Denoiser
from domaingallery_core.model.process import broadcast
from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.adapters import Adapter

Found = Iterator[tuple[str, Tensor, Tensor]]


def allowed(form: str, kind: str) -> float:
    """Return how far a kind of quantity may be off."""
    if form == "core":
        return 1e-8
    # The softmax over cosines is nearly flat: the divergence of two such is what float32 rounds away.
    return 1e-2 if "similarity" in kind else 1e-4


def training(reference: Reference, denoiser: Denoiser, adapter: Adapter, conditions: Conditions,
             images: dict[str, tuple[Tensor, Tensor]]) -> Found:  # fmt: skip
    """Yield (name, found, expected) for the losses, gradients and denoised latents of both stages."""
    parameters = adapter.named_parameters()

    def gradients(loss: Tensor, prefix: str) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        zeros = (torch.zeros_like(p) for p in parameters.values())
        return {
            f"{prefix}grad/{n}": z if g is None else g
            for n, g, z in zip(parameters, found, zeros, strict=True)
        }

    for stage, method in (("erasure", "erasure"), ("finetuning", "domaingallery")):
        plan = reference.plan(method)
        for group, expected in reference.groups(stage).items():
            noised = noised_batch(denoiser.process, int(group.removeprefix("t")), conditions, **images)
            terms = plan.method.terms(denoiser, adapter, {"domain": noised})
            total = plan.method.total(terms)
            found = {**terms, "total": total, **gradients(total, "")}
            if "similarity" in terms:
                found |= gradients(terms["similarity"], "similarity_only/")
                pair = denoised_pair(denoiser, noised.source, noised.timestep, conditions, plan.method)
                found["denoised_source_to_target"], found["denoised_source"] = pair
            for name, value in expected.items():
                yield f"{stage}/{group}/{name}", found[name].detach(), value


@torch.no_grad()
def sampling(reference: Reference, denoiser: Denoiser, dtype: torch.dtype) -> Found:
    """Yield (name, found, expected) for DDIM chains with enhancement."""
    inputs = {name: tensor.to(dtype) for name, tensor in reference.inputs.items()}
    process = denoiser.process
    for mode, base in (("V-uncond", "identifier"), ("VN-N", "source")):
        contexts = [inputs[f"context_{name}"] for name in ("uncond", base, "target")]
        for group, expected in reference.groups("sampling", mode).items():
            timesteps = reference.expected["sampling/timesteps"].tolist()
            rows = len(inputs["x_T"])
            condition = Condition.cat([Condition({"context": c}).expand(rows) for c in contexts])
            x = (
                inputs["x_T"]
                * broadcast(1 + process.sigma(timesteps[0], inputs["x_T"]) ** 2, inputs["x_T"]).sqrt()
            )
            for now, then in zip(timesteps, [*timesteps[1:], 0], strict=True):
                sigma = process.sigma(now, x)
                uncond, shift, target = denoiser(x.repeat(3, 1, 1, 1), sigma.repeat(3), condition).chunk(3)
                x0 = enhance(
                    uncond,
                    target,
                    shift,
                    guidance_scale=GUIDANCE_SCALE,
                    enhancement=float(group.removeprefix("lambda")),
                    mode=mode,
                )
                if now == timesteps[0]:
                    first = process.prediction(x, x0, sigma)
                x = process.ddim_noised(*process.ddim_prediction(x, x0, now), then)
            found = {
                "first_noise_pred": first,
                "final_latent": x / broadcast(1 + process.sigma(0, x) ** 2, x).sqrt(),
            }
            for name, value in expected.items():
                yield f"sampling/{mode}/{group}/{name}", found[name], value


def core_form(reference: Reference, host: Path) -> Found:
    """Yield (name, found, expected) with the host's UNet in float64 behind the core's denoiser."""
    dtype = torch.float64
    unet = host_unet(host, reference.config["unet_config"], reference.unet, dtype)
    denoiser = UNetDenoiser(unet, reference.process())
    plan = reference.plan("erasure")
    target, source, empty = (
        Condition({"context": reference.inputs[f"context_{name}"].to(dtype)})
        for name in ("target", "source", "uncond")
    )
    conditions = Conditions(target=target, source=source, empty=empty)
    config = AdapterSettings(rank=plan.adapter.rank, alpha=plan.adapter.alpha)
    with Adapter.inject(unet, config, generator(0, "adapter"), dtype=dtype) as adapter:
        adapter.load(reference.lora)
        yield from training(reference, denoiser, adapter, conditions, reference.images(dtype))
        yield from sampling(reference, denoiser, dtype)


def host_form(reference: Reference, host: Path) -> Found:
    """Yield (name, found, expected) through the nodes' wrapper of a MODEL and their guider, in float32."""
    form = HostForm(reference, host)
    with form.training() as (denoiser, adapter, conditions, images):
        yield from training(reference, denoiser, adapter, conditions, images)
    for mode in ("V-uncond", "VN-N"):
        for group, expected in reference.groups("sampling", mode).items():
            found = form.sample(mode, float(group.removeprefix("lambda")))
            for name, value in expected.items():
                yield f"sampling/{mode}/{group}/{name}", found[name], value


FORMS: dict[str, Callable[[Reference, Path], Found]] = {"core": core_form, "host": host_form}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the L2 norm of the difference over the norm of what is expected; 0 for equal zeros."""
    difference = float((found.double() - expected.double()).norm())
    norm = float(expected.double().norm())
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def kind_of(name: str) -> str:
    """Return what a quantity is a case of, for the summary."""
    stage, *_, last = name.split("/")
    if "/grad/" in name:
        return f"{stage} gradient" + (" of similarity" if "similarity_only" in name else "")
    return f"{stage} {last}"


def main(arguments: list[str] | None = None) -> int:
    """Print the errors of every folder and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--form", choices=[*FORMS, "all"], default="all")
    options = parser.parse_args(arguments)
    host = find_host(options.host)
    references = [Reference.read(folder) for folder in options.folders]
    enter_host_on_cpu(host)
    torch.set_num_threads(1)  # the tensors are small

    worst: dict[tuple[str, str], float] = {}
    counts: dict[tuple[str, str], int] = {}
    for reference in references:
        for form in FORMS if options.form == "all" else [options.form]:
            for name, found, expected in FORMS[form](reference, host):
                error = relative_error(found, expected)
                print(f"{form}  {reference.name}  {name}  {error:.2e}")
                key = form, kind_of(name)
                # An error that is not a number counts as infinite.
                worst[key] = max(worst.get(key, 0.0), error if error == error else float("inf"))
                counts[key] = counts.get(key, 0) + 1

    print(f"\n{'form':5} {'kind':36} {'number':>6} {'worst':>9} {'allowed':>8}")
    failed = not worst
    for (form, kind), error in sorted(worst.items()):
        most = allowed(form, kind)
        failed |= error > most
        verdict = "" if error <= most else "  too large"
        print(f"{form:5} {kind:36} {counts[form, kind]:6} {error:9.2e} {most:8.0e}{verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
