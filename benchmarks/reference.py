"""A folder of reference vectors, laid out as in tests/reference_vectors/README.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from domaingallery_core.methods import MethodSettings
from domaingallery_core.model.process import Process
from domaingallery_core.run.plan import TrainingPlan

KINDS = {"epsilon": "epsilon", "v_prediction": "v"}

#: The guidance scale of the sampling vectors (lambda_1 of Eq. 6).
GUIDANCE_SCALE = 7.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Hold a folder of reference vectors."""

    name: str
    config: dict[str, Any]
    unet: dict[str, Tensor]
    lora: dict[str, Tensor]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Reference:
        """Read a folder.

        Raises:
            SystemExit: it is not one, or its noise schedule is not that of Stable Diffusion.
        """
        names = ("unet", "lora", "inputs", "expected")
        try:
            config = json.loads((folder / "config.json").read_text())
            parts = {name: load_file(folder / f"{name}.safetensors") for name in names}
        except OSError as error:
            raise SystemExit(
                f"Expected a folder of reference vectors, got {str(folder)!r}: {error}."
            ) from None
        schedule = config["scheduler"]
        if schedule["beta_schedule"] != "scaled_linear" or schedule["set_alpha_to_one"]:
            raise SystemExit(
                "Expected a 'scaled_linear' beta schedule that ends at the alpha of timestep 0, "
                f"got {schedule!r} in {folder.name!r}."
            )
        return cls(name=folder.name, config=config, **parts)

    @property
    def betas(self) -> dict[str, Any]:
        """Return beta_start, beta_end and the number of timesteps."""
        schedule = self.config["scheduler"]
        return {
            "beta_start": schedule["beta_start"],
            "beta_end": schedule["beta_end"],
            "timesteps": schedule["num_train_timesteps"],
        }

    def process(self) -> Process:
        """Return the noise schedule."""
        return Process.scaled_linear(KINDS[self.config["prediction"]], **self.betas)  # type: ignore[arg-type]

    def plan(self, method: str) -> TrainingPlan:
        """Return the plan that the numbers were computed with; its batch size is not read."""
        own = MethodSettings(name=method).weights
        return TrainingPlan.of(
            method,
            steps=1,
            learning_rate=1e-4,
            weights={name: self.config["weights"][name] for name in own},
            denoise_steps=self.config["denoise_steps"],
            denoise_guidance=self.config["denoise_guidance"],
            rank=self.config["lora"]["rank"],
            alpha=float(self.config["lora"]["alpha"]),
        )

    def images(self, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (latents, noise) of the target and the source images."""
        return {
            part: (self.inputs[f"latents_{part}"].to(dtype), self.inputs[f"noise_{part}"].to(dtype))
            for part in ("target", "source")
        }

    def groups(self, *keys: str) -> dict[str, dict[str, Tensor]]:
        """Return the expected values below each "<key>/<group>/"."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in self.expected.items():
            parts = name.split("/", len(keys) + 1)
            if parts[: len(keys)] == list(keys) and len(parts) == len(keys) + 2:
                found.setdefault(parts[len(keys)], {})[parts[-1]] = value
        return found
