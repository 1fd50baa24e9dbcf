"""A second, plain implementation of the method, to write folders of reference vectors that nobody has seen.

It follows the released code's order of work: betas in float32, one evaluation a prompt, DDIM in terms of
epsilon or v, LoRA merged into the weights. It shares no function with the core; the UNet is the host's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 16,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
}
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
}
WEIGHTS = {"prior": 1.0, "erasure": 10.0, "disentanglement": 10.0, "similarity": 1.0}

#: What each folder changes of 4 images of 8 x 8 latents, epsilon, and 5 denoising steps without guidance.
CASES: dict[str, dict[str, Any]] = {
    "three_images": {"batch": 3, "timesteps": [3, 640], "sampling": {"V-uncond": [0.5], "VN-N": [1.5]}},
    "two_images": {"batch": 2, "timesteps": [300]},
    "guided": {"denoise_guidance": 3.0, "denoise_steps": 3, "timesteps": [2, 500], "rank": 2, "size": (7, 5)},
    "guided_v": {
        "prediction": "v_prediction",
        "denoise_guidance": 3.0,
        "batch": 3,
        "timesteps": [0, 999],
        "size": (9, 6),
    },
    "one_step_v": {
        "prediction": "v_prediction",
        "denoise_steps": 1,
        "timesteps": [57],
        "weights": {"prior": 0.5, "erasure": 3.0, "disentanglement": 4.0, "similarity": 2.0},
        "betas": (0.001, 0.015),
        "sampling": {"VN-N": [-0.5]},
    },
}


class Reference:
    """Compute everything that a folder expects, in float64."""

    def __init__(
        self,
        unet: torch.nn.Module,
        lora: dict[str, Tensor],
        inputs: dict[str, Tensor],
        config: dict[str, Any],
    ) -> None:
        self.unet, self.config, self.inputs = unet, config, inputs
        self.base = dict(unet.named_parameters())
        self.lora = {name: tensor.clone().requires_grad_() for name, tensor in lora.items()}
        schedule = config["scheduler"]
        # torch.linspace in float32, spelled out, since machines differ in how they round it.
        count = schedule["num_train_timesteps"]
        first, last = (
            torch.tensor([schedule["beta_start"], schedule["beta_end"]], dtype=torch.float64).sqrt().float()
        )
        rise = ((last - first) / (count - 1)).double()
        k = torch.arange(count, dtype=torch.float64)
        up, down = first.double() + rise * k, last.double() - rise * (count - 1 - k)
        betas = torch.where(k < count / 2, up, down).float() ** 2
        self.abar = torch.cumprod(1 - betas, 0)  # float32
        self.v = config["prediction"] == "v_prediction"

    def on(self) -> dict[str, Tensor]:
        """Return the weights with the LoRA merged in; its scale is 1."""
        merged = dict(self.base)
        for name in self.lora:
            if name.endswith("lora_A.weight"):
                module = name.removesuffix(".lora_A.weight")
                delta = self.lora[f"{module}.lora_B.weight"] @ self.lora[name]
                merged[f"{module}.weight"] = self.base[f"{module}.weight"] + delta
        return merged

    def predict(self, weights: dict[str, Tensor], x: Tensor, t: int, prompt: str) -> Tensor:
        """Return the network's own output for a batch under one prompt."""
        context = self.inputs[f"context_{prompt}"].expand(len(x), -1, -1)
        return functional_call(self.unet, weights, (x, torch.full((len(x),), t)), {"context": context})

    def features(self, weights: dict[str, Tensor], x: Tensor, prompt: str) -> list[Tensor]:
        """Return what leaves each block of the down path at timestep 0."""
        found: list[Tensor] = []
        handles = [
            block[-1].register_forward_hook(lambda _module, _inputs, out: found.append(out))
            for block in self.unet.input_blocks
        ]
        self.predict(weights, x, 0, prompt)
        for handle in handles:
            handle.remove()
        return found

    def noised(self, part: str, t: int) -> tuple[Tensor, Tensor]:
        """Return noisy latents and what is regressed on for them."""
        latents, noise = self.inputs[f"latents_{part}"], self.inputs[f"noise_{part}"]
        a = self.abar.double()[t]
        x = a.sqrt() * latents + (1 - a).sqrt() * noise
        return x, (a.sqrt() * noise - (1 - a).sqrt() * latents if self.v else noise)

    def step(self, x: Tensor, out: Tensor, t: int, then: int) -> tuple[Tensor, Tensor]:
        """Return (x0, x at `then`) of a DDIM step with eta 0; the coefficients are float32 scalars."""
        a, rest = self.roots(t)
        next_a, next_rest = self.roots(max(then, 0))
        if self.v:
            x0, epsilon = a * x - rest * out, a * out + rest * x
        else:
            x0, epsilon = (x - rest * out) / a, out
        return x0, next_a * x0 + next_rest * epsilon

    def roots(self, t: int) -> tuple[float, float]:
        """Return the float32 roots of abar and 1 - abar, by numpy: torch rounds some of them wrongly."""
        abar = self.abar[t].numpy()
        return float(np.sqrt(abar)), float(np.sqrt(1 - abar))

    def denoised(self, weights: dict[str, Tensor], x: Tensor, t: int, prompt: str) -> Tensor:
        """Return the x0 of the last of n recurrent steps."""
        n, scale = self.config["denoise_steps"], self.config["denoise_guidance"]
        times = np.round(np.linspace(t, 0, n + 1))[:-1].astype(int) if t > n - 1 else np.arange(t, -1, -1)
        x0 = x
        for k, now in enumerate(times):
            out = self.predict(weights, x, int(now), prompt)
            if scale != 1:
                uncond = self.predict(weights, x, int(now), "uncond")
                out = uncond + scale * (out - uncond)
            x0, x = self.step(x, out, int(now), int(times[k + 1]) if k + 1 < len(times) else 0)
        return x0

    def similarity(self, moving: list[Tensor], fixed: list[Tensor]) -> Tensor:
        """Return Eq. 4 in the scale of the released code."""

        def cosines(feature: Tensor) -> Tensor:
            rows = feature.flatten(1)
            count = range(len(rows))
            return torch.stack(
                [
                    torch.stack([F.cosine_similarity(rows[i], rows[j], dim=0) for j in count if j != i])
                    for i in count
                ]
            )

        layers = [
            F.kl_div(cosines(m).log_softmax(1), cosines(f).detach().softmax(1), reduction="none").mean()
            for m, f in zip(moving, fixed, strict=True)
        ]
        return sum(layers) / len(layers)

    def gradients(self, loss: Tensor, prefix: str) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(self.lora.values()), retain_graph=True)
        return {f"{prefix}/grad/{name}": g for name, g in zip(self.lora, found, strict=True)}

    def stage(self, name: str, t: int) -> dict[str, Tensor]:
        """Return losses and gradients of a stage at a timestep."""
        on, weights = self.on(), self.config["weights"]
        x, wanted = self.noised("source", t)
        source = self.predict(on, x, t, "source")
        with torch.no_grad():
            base = self.predict(self.base, x, t, "source")
        losses = {"prior": F.mse_loss(source, wanted), "disentanglement": F.mse_loss(source, base)}
        extra = {}
        if name == "erasure":
            losses["erasure"] = F.mse_loss(self.predict(on, x, t, "target"), source.detach())
        else:
            moving = self.denoised(on, x, t, "target")
            with torch.no_grad():
                fixed = self.denoised(on, x, t, "source")
                reference = self.features(on, fixed, "source")
            losses["similarity"] = self.similarity(self.features(on, moving, "target"), reference)
            extra = {"denoised_source_to_target": moving, "denoised_source": fixed}
        total = sum(weights[key] * loss for key, loss in losses.items())
        if name == "finetuning":
            target_x, target_wanted = self.noised("target", t)
            losses["target"] = F.mse_loss(self.predict(on, target_x, t, "target"), target_wanted)
            total = total + losses["target"]
        prefix = f"{name}/t{t}"
        found = {f"{prefix}/{key}": value for key, value in {**losses, **extra, "total": total}.items()}
        found |= self.gradients(total, prefix)
        if "similarity" in losses:
            found |= self.gradients(losses["similarity"], f"{prefix}/similarity_only")
        return {key: value.detach() for key, value in found.items()}

    @torch.no_grad()
    def chain(self, mode: str, strength: float, times: list[int]) -> tuple[Tensor, Tensor]:
        """Return the first combined prediction and the end of a DDIM chain with Eq. 6."""
        on, x, scale = self.on(), self.inputs["x_T"], 7.5
        first = None
        for k, t in enumerate(times):
            u, p = (self.predict(on, x, t, prompt) for prompt in ("uncond", "target"))
            shift = (
                self.predict(on, x, t, "identifier") - u
                if mode == "V-uncond"
                else p - self.predict(on, x, t, "source")
            )
            out = u + scale * (p - u) + scale * strength * shift
            first = out if first is None else first
            _, x = self.step(x, out, t, times[k + 1] if k + 1 < len(times) else -1)
        return first, x


def write(folder: Path, name: str, build: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> Path:
    """Write the folder of a case, with everything random drawn from its name.

    Args:
        build: makes the host's UNet in float64 from keyword arguments and, if not empty, weights.
    """
    case = dict(CASES[name])
    size, sampling, rank = (
        case.pop(key, default) for key, default in (("size", (8, 8)), ("sampling", {}), ("rank", 4))
    )
    schedule = dict(SCHEDULE)
    if "betas" in case:
        schedule["beta_start"], schedule["beta_end"] = case.pop("betas")
    config = {
        "unet_config": UNET,
        "prediction": "epsilon",
        "batch": 4,
        "denoise_steps": 5,
        "denoise_guidance": 1.0,
        "weights": WEIGHTS,
        "scheduler": schedule,
        "lora": {"rank": rank, "alpha": rank},
        **case,
    }
    draws = torch.Generator().manual_seed(sum(name.encode()))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=draws) * scale

    unet = build(UNET, {})
    state = {
        key: normal(*weight.shape, scale=0.6 * weight[0].numel() ** -0.5)
        if weight.ndim > 1
        else (normal(*weight.shape, scale=0.1) + float(key.endswith("weight")))
        for key, weight in unet.state_dict().items()
    }
    unet.load_state_dict({key: tensor.double() for key, tensor in state.items()})
    lora = {}
    for module, layer in unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and any(
            module.endswith(f".attn{k}.{end}") for k in (1, 2) for end in ("to_q", "to_k", "to_v", "to_out.0")
        ):
            lora[f"{module}.lora_A.weight"] = normal(rank, layer.in_features, scale=0.2)
            lora[f"{module}.lora_B.weight"] = normal(layer.out_features, rank, scale=0.2)
    inputs = {f"context_{p}": normal(1, 7, 16) for p in ("target", "source", "uncond", "identifier")}
    for part in ("target", "source"):
        inputs[f"latents_{part}"] = normal(config["batch"], 4, *size)
        inputs[f"noise_{part}"] = normal(config["batch"], 4, *size)
    inputs["x_T"] = normal(2, 4, *size)

    def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensor.double() for key, tensor in tensors.items()}

    reference = Reference(unet, double(lora), double(inputs), config)
    expected: dict[str, Tensor] = {}
    for stage in ("erasure", "finetuning"):
        for t in config["timesteps"]:
            expected |= reference.stage(stage, t)
    times = [801, 601, 401, 201, 1]
    for mode, strengths in sampling.items():
        expected["sampling/timesteps"] = torch.tensor(times)
        for strength in strengths:
            first, final = reference.chain(mode, strength, times)
            prefix = f"sampling/{mode}/lambda{strength}"
            expected |= {f"{prefix}/first_noise_pred": first, f"{prefix}/final_latent": final}
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    for file, tensors in (("unet", state), ("lora", lora), ("inputs", inputs), ("expected", expected)):
        save_file({k: v.contiguous() for k, v in tensors.items()}, path / f"{file}.safetensors")
    return path
