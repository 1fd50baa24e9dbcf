"""A VAE as the core sees it: latents of a model to pictures, with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....domaingallery_core.errors import InputError, shown
from .encoding import check_vae
from .latents import vae_latents

OTHERWISE = "Connect the VAE that belongs to the model to Domain Dataset."


class HostDecoder:
    """Be the core's Decoder for a VAE of the host, loaded for training beside the MODEL."""

    def __init__(self, model: ModelPatcher, vae: Any) -> None:
        """Look at what the VAE does with a few numbers.

        Raises:
            InputError: it is no VAE of the model, or it stops the gradient.
        """
        check_vae(model, vae)
        self.model, self.vae = model, vae
        self._check()

    def __call__(self, latents: Tensor, *, rescaled: bool = True) -> Tensor:
        """Return pictures (B 3 H W) of latents (B C H W) as the model sees them."""
        given = vae_latents(self.model, latents) if rescaled else latents
        given = given.to(device=self.vae.patcher.load_device, dtype=self.vae.vae_dtype)
        return self.vae.first_stage_model.decode(given).to(latents)

    def _check(self) -> None:
        channels = self.model.model.latent_format.latent_channels
        latents = torch.ones((1, channels, 8, 8), device=self.model.load_device, requires_grad=True)
        try:
            found = self(latents)
            if found.ndim != 4 or found.shape[1] != 3:
                raise ValueError(f"it gives {shown(found)}")
            (gradient,) = torch.autograd.grad(found.float().square().mean(), latents)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(
                f"Expected a VAE that decodes pictures with a gradient, got one that does not: {error}. "
                f"{OTHERWISE}"
            ) from error
        if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
            raise InputError(
                "Expected a VAE that decodes pictures with a gradient, got one whose gradient is zero or not "
                f"finite. {OTHERWISE}"
            )


def vae_patcher(vae: Any) -> ModelPatcher:
    """Return what the host loads of a VAE.

    Raises:
        InputError: there is no VAE, or it is of a kind that decodes nothing that can be trained through.
    """
    patcher = getattr(vae, "patcher", None)
    if not isinstance(patcher, ModelPatcher) or getattr(vae, "first_stage_model", None) is None:
        got = "none" if vae is None else shown(vae)
        raise InputError(
            f"Expected the VAE of the model, through which this method looks at pictures, got {got}. "
            f"{OTHERWISE}"
        )
    return patcher
