"""Images B H W C at the size that a model trains on: crops, buckets of one shape, flips, masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import InputError

#: Crops of each image that are encoded where crops are random; which is read is drawn anew each time.
CROPS = 8
#: Images are not stretched by more than this.
LARGEST_SCALE = 2.0

#: Images have at least such sides, in pixels.
SMALLEST = 8
#: Values may be so far out of 0..1, as upscalers leave them.
BEYOND = 0.5

Size = tuple[int, int]  # height, width


def check_batch(images: Tensor, name: str) -> None:
    """Check the shape of a batch of images (B H W C).

    Raises:
        InputError: it is none, or too small to be drawn or learned from.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        shape = f"a shape of {tuple(images.shape)!r}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"Expected {name} as a batch of RGB images, got {shape}. Connect images.")
    if len(images) == 0:
        raise InputError(f"Expected {name}, got an empty batch. Connect at least one image.")
    if min(images.shape[1:3]) < SMALLEST:
        raise InputError(
            f"Expected {name} of at least {SMALLEST} x {SMALLEST} pixels, got {images.shape[2]} x "
            f"{images.shape[1]}. Use larger images."
        )


def checked_image(image: Tensor, name: str) -> Tensor:
    """Return an image (1 H W C) with three channels, in 0..1; one channel is grey.

    Raises:
        InputError: its values are not finite, or of another range.
    """
    if not image.dtype.is_floating_point:
        raise InputError(f"Expected {name} in floating point, got {image.dtype}. Connect images of the host.")
    image = image.float()
    low, high = (float(value) for value in image.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"Expected {name} of plain numbers, got values that are not finite. "
            "Leave it out or make it again."
        )
    if low < -BEYOND or high > 1 + BEYOND:
        raise InputError(
            f"Expected {name} with values in 0..1, got {low:.4g} to {high:.4g}. Divide by the largest value, "
            "such as 255, before."
        )
    image = image.expand(*image.shape[:3], 3) if image.shape[-1] == 1 else image[..., :3]
    return image.clamp(0, 1)


def cover(images: Tensor, size: Size, *, name: str = "target images") -> Tensor:
    """Resize images (B H W C) until they just cover a size, bilinear, as the reference prepares its own.

    Raises:
        InputError: they are less than half as large.
    """
    height, width = size
    scale = max(height / images.shape[1], width / images.shape[2])
    if scale == 1:
        return images
    if scale > LARGEST_SCALE:
        raise InputError(
            f"Expected {name} of about {width} x {height} pixels, the size of the source images, got "
            f"{images.shape[2]} x {images.shape[1]}. Use larger images or draw smaller source images."
        )
    covering = covered((images.shape[1], images.shape[2]), size)
    resized = interpolate(images.movedim(-1, 1), covering, mode="bilinear", antialias=True)  # -> B C H W
    return resized.movedim(1, -1).clamp(0, 1)


def covered(image: Size, size: Size) -> Size:
    """Return the size of an image once it just covers another size."""
    scale = max(size[0] / image[0], size[1] / image[1])
    return max(size[0], round(image[0] * scale)), max(size[1], round(image[1] * scale))


def centre_crop(images: Tensor, size: Size) -> Tensor:
    """Cut a size out of the centre of images (B H W C) that cover it."""
    top, left = ((images.shape[1 + i] - size[i]) // 2 for i in (0, 1))
    return images[:, top : top + size[0], left : left + size[1]]


def random_crop(images: Tensor, size: Size, generator: torch.Generator) -> Tensor:
    """Cut a size out of images (B H W C) that cover it, anywhere."""
    top, left = (
        int(torch.randint(images.shape[1 + i] - size[i] + 1, (), generator=generator)) for i in (0, 1)
    )
    return images[:, top : top + size[0], left : left + size[1]]


def variants(image: Tensor, size: Size, *, crops: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return the crops (V H W C) of an image (1 H W C) that covers a size, then their mirror images.

    Args:
        crops: 1 for a crop at the centre, more for random ones.
    """
    if crops == 1:
        found = centre_crop(image, size)
    else:
        found = torch.cat([random_crop(image, size, generator) for _ in range(crops)])
    return torch.cat([found, found.flip(2)]) if flip else found


def bucket_sizes(size: Size) -> list[Size]:
    """Return sizes of about the area of one, of shapes from 1:2 to 2:1, in steps of an eighth of a side."""
    side = math.sqrt(size[0] * size[1])
    step = min(64, max(8, round(side / 64) * 8))
    widths = range(step, 2 * round(side), step)
    sizes = {(max(step, round(side * side / width / step) * step), width) for width in widths}
    return sorted({(size[0], size[1]), *(s for s in sizes if 0.5 <= s[1] / s[0] <= 2)})


def nearest_bucket(image: Size, sizes: list[Size]) -> Size:
    """Return the size whose shape is nearest to that of an image."""
    return min(sizes, key=lambda s: abs(math.log(s[1] / s[0]) - math.log(image[1] / image[0])))


def latent_masks(masks: Tensor, size: Size) -> Tensor:
    """Return masks (B H W C, any channel) as B 1 H W at the size of latents: the mean over each place."""
    return interpolate(masks[..., :1].movedim(-1, 1), size, mode="area")


def as_mask_image(mask: Tensor, size: Size) -> Tensor:
    """Return a mask (H W) as an image (1 H W 3) of a size, in 0..1, so that it is cropped like its image."""
    mask = mask[None, None].clamp(0, 1)
    if mask.shape[2:] != size:
        mask = interpolate(mask, size, mode="bilinear", antialias=True)
    return mask.movedim(1, -1).expand(-1, -1, -1, 3)
