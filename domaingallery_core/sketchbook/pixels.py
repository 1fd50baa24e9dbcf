"""Images as latents without a learned encoder.

Brightness in patches of 4 x 4 is exact; colour loses half its resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4
CHANNELS = PATCH * PATCH + 2 * (PATCH // 2) ** 2  # 16 of brightness, 2 x 4 of colour
_COLOUR_GAIN = 1.6  # brings the colour channels near the spread of the brightness


class PixelCodec(nn.Module):
    """Encode images (B 3 H W, -1..1) as latents (B 24 H/4 W/4), and back."""

    to_yuv: Tensor
    to_rgb: Tensor

    def __init__(self) -> None:
        super().__init__()
        to_yuv = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
        to_yuv[1:] *= _COLOUR_GAIN
        self.register_buffer("to_yuv", to_yuv)
        self.register_buffer("to_rgb", torch.linalg.inv(to_yuv.double()).float())

    def encode(self, image: Tensor) -> Tensor:
        """Return latents, B 24 H/4 W/4."""
        yuv = torch.einsum("cd,bdhw->bchw", self.to_yuv, image)
        colour = F.avg_pool2d(yuv[:, 1:], 2)
        return torch.cat([F.pixel_unshuffle(yuv[:, :1], PATCH), F.pixel_unshuffle(colour, PATCH // 2)], dim=1)

    def decode(self, latent: Tensor) -> Tensor:
        """Return images, B 3 H W."""
        light = F.pixel_shuffle(latent[:, : PATCH * PATCH], PATCH)
        colour = F.pixel_shuffle(latent[:, PATCH * PATCH :], PATCH // 2)
        colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.einsum("cd,bdhw->bchw", self.to_rgb, torch.cat([light, colour], dim=1))

    @staticmethod
    def preview_factors() -> tuple[list[list[float]], list[float]]:
        """Return the linear map from a latent to its patch's mean colour, 24 rows of RGB, and a bias."""
        to_rgb = PixelCodec().to_rgb
        share = [1 / PATCH**2] * PATCH**2 + [4 / PATCH**2] * (CHANNELS - PATCH**2)
        source = [0] * PATCH**2 + [1] * (PATCH // 2) ** 2 + [2] * (PATCH // 2) ** 2
        factors = [(to_rgb[:, s] * w).tolist() for s, w in zip(source, share, strict=True)]
        return factors, [0.0, 0.0, 0.0]
