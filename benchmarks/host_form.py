"""Reference vectors through the nodes: a real MODEL of the host, the wrapper for training, the guider."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.reference import GUIDANCE_SCALE, Reference
from tools.host.load_pack import load_pack

MODEL_TYPES = {"epsilon": "EPS", "v_prediction": "V_PREDICTION"}


class HostForm:
    """Compute the numbers of a folder in float32 as the nodes do."""

    def __init__(self, reference: Reference, host: Path) -> None:
        self.reference = reference
        self.pack = load_pack(host)
        with torch.inference_mode():  # as a loader makes it
            self.model = host_model(reference)

    def module(self, name: str) -> Any:
        """Return a module of the pack by name, such as "nodes.host.model"."""
        return sys.modules[f"{self.pack.__name__}.{name}"]

    def conditioning(self, name: str) -> list[list[Any]]:
        """Return an encoded prompt as a CONDITIONING."""
        return [[self.reference.inputs[f"context_{name}"].clone(), {}]]

    @contextmanager
    def training(self) -> Iterator[tuple[Any, Any, Any, dict[str, tuple[Tensor, Tensor]]]]:
        """Give denoiser, adapter, conditions and (latents, noise) of a MODEL made ready for training."""
        host, core = self.module("nodes.host.model"), "domaingallery_core"
        seen = self.module("nodes.host.pixels.latents").training_latents
        plan = self.reference.plan("erasure")
        config = self.module(f"{core}.trainables.adapter_settings").AdapterSettings(
            rank=plan.adapter.rank, alpha=plan.adapter.alpha
        )
        draws = self.module(f"{core}.generators").generator(0, "adapter")
        with torch.inference_mode(), host.training(self.model) as device:
            images = {
                part: (seen(self.model, latents).to(device), noise)
                for part, (latents, noise) in self.reference.images(torch.float32).items()
            }
            denoiser = host.HostDenoiser(self.model)
            found = denoiser.conditions(
                [self.conditioning(name) for name in ("target", "source", "uncond")], images["source"][0]
            )
            names = ("target", "source", "empty")
            conditions = self.module(f"{core}.model.denoiser").Conditions(
                **dict(zip(names, found, strict=True))
            )
            unet = self.model.model.diffusion_model
            with self.module(f"{core}.trainables.adapters").Adapter.inject(unet, config, draws) as adapter:
                adapter.load(self.reference.lora)
                yield denoiser, adapter, conditions, images

    @torch.inference_mode()
    def sample(self, mode: str, enhancement: float) -> dict[str, Tensor]:
        """Return the first prediction and the end of a DDIM chain through Domain Guider's GUIDER."""
        import comfy.samplers
        import comfy.sd

        sampling = self.model.get_model_object("model_sampling")
        timesteps = self.reference.expected["sampling/timesteps"].tolist()
        sigmas = torch.stack([sampling.sigmas[t] for t in [*timesteps, 0]])
        x = self.reference.inputs["x_T"] * (1 + sigmas[0] ** 2).sqrt()
        lora = self.module("domaingallery_core.files.formats.comfyui").Comfyui().to_file(self.reference.lora)
        model, _ = comfy.sd.load_lora_for_models(self.model, None, lora, 1.0, 0)
        firsts: list[Tensor] = []

        def keep(step: int, denoised: Tensor, x: Tensor, _total: int) -> None:
            if step == 0:
                firsts.append(self._prediction(x, denoised, sigmas[0]))

        # x is given as the latent, with no noise, since the guider scales noise by the first sigma.
        final = self._guider(model, mode, enhancement).sample(
            torch.zeros_like(x),
            x,
            comfy.samplers.sampler_object("ddim"),
            sigmas,
            callback=keep,
            disable_pbar=True,
            seed=0,
        )
        return {"first_noise_pred": firsts[0], "final_latent": final / (1 + sigmas[-1] ** 2).sqrt()}

    def _guider(self, model: Any, mode: str, enhancement: float) -> Any:
        names = {"target": "target", "source": "source", "bare": "identifier", "empty": "uncond"}
        encoded = {name: self.conditioning(context) for name, context in names.items()}
        sockets = self.module("nodes.sockets")
        category = sockets.CategoryPrompts(identifier="V", category="N", **encoded)
        return self.module("nodes.draw.sampling").make_guider(
            model,
            encoded["target"],
            encoded["empty"],
            sockets.DomainPrompts((category,)),
            mode=mode,
            cfg=GUIDANCE_SCALE,
            enhancement=enhancement,
        )

    def _prediction(self, x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        process = self.module("nodes.host.model").process_of(self.model)
        return process.prediction(x, x0, sigma.expand(len(x)))


def host_model(reference: Reference) -> Any:
    """Return a MODEL with the UNet of a folder, in latents that are not scaled."""
    latent_formats, model_base, model_management, model_patcher, supported_models_base = (
        importlib.import_module(f"comfy.{name}")
        for name in (
            "latent_formats",
            "model_base",
            "model_management",
            "model_patcher",
            "supported_models_base",
        )
    )
    betas = reference.betas

    class Config(supported_models_base.BASE):
        unet_config = reference.config["unet_config"]
        unet_extra_config: ClassVar = {}
        sampling_settings: ClassVar = {
            "linear_start": betas["beta_start"],
            "linear_end": betas["beta_end"],
            "timesteps": betas["timesteps"],
        }
        memory_usage_factor = 0.1
        latent_format = latent_formats.LatentFormat

    config = Config(
        {name: list(v) if isinstance(v, list) else v for name, v in reference.config["unet_config"].items()}
    )
    config.set_inference_dtype(torch.float32, None)
    kind = model_base.ModelType[MODEL_TYPES[reference.config["prediction"]]]
    model = model_base.BaseModel(config, kind, device=torch.device("cpu"))
    model.diffusion_model.load_state_dict(reference.unet)
    device = model_management.get_torch_device()
    return model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)
