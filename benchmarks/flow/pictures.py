"""Pictures as the demo measures them."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from tools.demo.measure import Pictures


def as_pictures(images: Tensor, asked: str) -> Pictures:
    """Return images (B H W C in 0..1) as they would be saved."""
    arrays = (images * 255).clamp(0, 255).byte().cpu().numpy()
    return Pictures(tuple(Image.fromarray(array) for array in arrays), (asked,) * len(arrays))
