"""Crops, buckets and masks."""

from __future__ import annotations

import math

import pytest
import torch

from domaingallery_core.data.images import (
    CROPS,
    as_mask_image,
    bucket_sizes,
    check_batch,
    checked_image,
    cover,
    covered,
    latent_masks,
    nearest_bucket,
    random_crop,
    variants,
)
from domaingallery_core.errors import InputError
from domaingallery_core.generators import generator


def ramp(height: int, width: int) -> torch.Tensor:
    """Return an image (1 H W 3) that tells by red and green where a pixel is from."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows / height, columns / width, torch.zeros(height, width)], -1)[None]


def test_random_crops_are_pieces_of_the_image_at_different_places():
    image = ramp(32, 64)
    stream = generator(0, "crop")

    crops = [random_crop(image, (32, 32), stream) for _ in range(CROPS)]

    lefts = [round(float(crop[0, 0, 0, 1]) * 64) for crop in crops]
    assert all(
        torch.equal(crop, image[:, :, left : left + 32]) for crop, left in zip(crops, lefts, strict=True)
    )
    assert len(set(lefts)) > CROPS // 2 and 0 <= min(lefts) and max(lefts) <= 32


def test_random_crops_are_found_at_all_places_and_again_by_their_seed():
    image = ramp(33, 26)

    first, second = (
        [random_crop(image, (32, 24), stream) for _ in range(60)]
        for stream in (generator(0, "crop"), generator(0, "crop"))
    )

    corners = {(round(float(c[0, 0, 0, 0]) * 33), round(float(c[0, 0, 0, 1]) * 26)) for c in first}
    assert corners == {(top, left) for top in (0, 1) for left in (0, 1, 2)}
    assert all(torch.equal(a, b) and a.shape == (1, 32, 24, 3) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (35, 39)])
def test_one_crop_is_at_the_centre(shape):
    image = ramp(*shape)
    top, left = (shape[0] - 32) // 2, (shape[1] - 24) // 2

    found = variants(image, (32, 24), crops=1, flip=False, generator=generator(0, "crop"))

    assert torch.equal(found, image[:, top : top + 32, left : left + 24])


def test_flips_follow_their_crops():
    image = ramp(32, 64)
    given = {"size": (32, 32), "crops": 2, "generator": generator(1, "crop")}

    found = variants(image, flip=True, **given)

    assert found.shape == (4, 32, 32, 3)
    assert torch.equal(found[2:], found[:2].flip(2))


def test_a_cover_keeps_the_shape_and_refuses_to_blow_up():
    assert cover(torch.rand(1, 100, 300, 3), (50, 50)).shape == (1, 50, 150, 3)
    assert cover(torch.rand(1, 40, 30, 3), (50, 50)).shape == (1, 67, 50, 3)
    assert cover(torch.rand(1, 40, 32, 3), (64, 64)).shape == (1, 80, 64, 3)
    assert cover(torch.rand(1, 10, 99, 3), (20, 30)).shape == (1, 20, 198, 3)
    with pytest.raises(InputError, match=r"Expected faces of about 64 x 64 pixels.*got 30 x 40"):
        cover(torch.rand(1, 40, 30, 3), (64, 64), name="faces")


@pytest.mark.parametrize(
    ("image", "size", "expected"),
    [
        ((40, 30), (40, 20), (40, 30)),
        ((40, 30), (20, 30), (40, 30)),
        ((100, 50), (30, 40), (80, 40)),
        ((50, 100), (40, 30), (40, 80)),
        ((3, 7), (9, 9), (9, 21)),
    ],
)
def test_a_cover_just_covers(image, size, expected):
    assert covered(image, size) == expected


@pytest.mark.parametrize("size", [(40, 20), (20, 30), (40, 30)])
def test_an_image_that_just_covers_is_left_as_it_is(size):
    image = torch.rand(1, 40, 30, 3)

    assert cover(image, size) is image


def test_a_picture_is_the_same_picture_once_it_covers():
    """A ramp stays one, up to the rim; a pattern finer than a pixel becomes its mean."""
    stripes = torch.zeros(1, 64, 64, 3)
    stripes[:, :, ::4] = 1

    torch.testing.assert_close(
        cover(ramp(64, 128), (32, 32))[:, 1:-1, 1:-1], ramp(32, 64)[:, 1:-1, 1:-1], atol=0.02, rtol=0
    )
    assert float((cover(stripes, (16, 16))[:, :, 1:-1] - 0.25).abs().max()) < 0.05


@pytest.mark.parametrize("size", [(512, 512), (64, 64), (768, 512)])
def test_buckets_have_about_the_area_of_the_size(size):
    sizes = bucket_sizes(size)
    area = math.prod(size)

    assert size in sizes and len(sizes) >= 5
    assert all(abs(h * w / area - 1) < 0.13 for h, w in sizes)
    assert all(h % 8 == w % 8 == 0 for h, w in sizes)
    assert 0.5 <= min(w / h for h, w in sizes) < 0.6 and 1.7 < max(w / h for h, w in sizes) <= 2


def test_the_most_extreme_buckets_are_twice_as_long_as_wide():
    assert {(768, 384), (384, 768)} <= {*bucket_sizes((544, 544))}


def test_an_image_goes_to_the_bucket_of_its_shape():
    sizes = bucket_sizes((512, 512))

    assert nearest_bucket((1000, 1000), sizes) == (512, 512)
    height, width = nearest_bucket((900, 1600), sizes)
    assert 1.5 < width / height < 2.0


def test_masks_become_the_mean_over_each_latent():
    mask = torch.zeros(16, 16)
    mask[:, 4:8] = 1

    image = as_mask_image(mask * 3 - 1, (16, 16))

    assert image.shape == (1, 16, 16, 3)
    assert latent_masks(image, (2, 2)).tolist() == [[[[0.5, 0.0], [0.5, 0.0]]]]


def test_grey_and_alpha_become_rgb():
    assert checked_image(torch.rand(1, 4, 4, 1), "images").shape == (1, 4, 4, 3)
    assert checked_image(torch.rand(1, 4, 4, 4), "images").shape == (1, 4, 4, 3)
    for channels in (1, 3, 4):
        check_batch(torch.rand(1, 8, 8, channels), "images")
    for channels in (2, 5):
        with pytest.raises(InputError, match="batch of RGB images"):
            check_batch(torch.rand(1, 9, 9, channels), "images")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 9, 9, 3) * 255, r"values in 0\.\.1, got .* Divide by the largest value"),
        (torch.rand(1, 9, 9, 3) - 1, r"values in 0\.\.1"),
        (torch.tensor([0, 0.5, 1.6]).expand(1, 9, 9, 3), r"values in 0\.\.1, got 0 to 1\.6"),
        (torch.full((1, 9, 9, 3), float("inf")), "not finite"),
        (torch.tensor([0, 0.5, float("inf")]).expand(1, 9, 9, 3), "not finite"),
        (torch.zeros(1, 9, 9, 3, dtype=torch.uint8), r"in floating point, got torch\.uint8"),
    ],
)
def test_values_that_are_no_picture_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        checked_image(images, "target images")


def test_values_a_little_beyond_are_taken_as_upscalers_leave_them():
    image = torch.tensor([-0.5, 0.5, 1.5]).expand(1, 9, 9, 3)

    assert checked_image(image, "images")[0, 0, 0].tolist() == [0, 0.5, 1]
    assert checked_image(image.half(), "images").dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "RGB images, got NoneType"),
        ([1], "RGB images, got list"),
        (torch.rand(9, 9, 3), r"RGB images, got a shape of \(9, 9, 3\)"),
        (torch.rand(0, 9, 9, 3), "got an empty batch"),
        (torch.rand(1, 1, 1, 3), "at least 8 x 8 pixels, got 1 x 1"),
        (torch.rand(1, 9, 7, 3), "got 7 x 9"),
        (torch.rand(1, 7, 9, 3), "got 9 x 7"),
    ],
)
def test_batches_of_no_images_are_refused(images, message):
    with pytest.raises(InputError, match=f"Expected source images.*{message}"):
        check_batch(images, "source images")


def test_a_mask_of_another_size_is_that_of_its_image():
    mask = torch.zeros(4, 8)
    mask[:, 4:] = 1

    found = as_mask_image(mask, (8, 16))

    assert found.shape == (1, 8, 16, 3)
    assert float(found[0, :, :6].max()) == 0 and float(found[0, :, 10:].min()) == 1


def test_a_thin_line_of_a_larger_mask_is_not_lost():
    mask = torch.zeros(64, 64)
    mask[:, 1] = 1

    found = as_mask_image(mask, (8, 8))

    assert float(found[0, :, 0].min()) > 0.05 and float(found[0, :, 2:].max()) == 0


def test_the_sides_of_buckets_grow_with_the_size():
    """At 512 they are multiples of 64, at 64 of 8."""
    for side, step in ((512, 64), (64, 8), (1024, 64)):
        sides = {each for size in bucket_sizes((side, side)) for each in size}
        assert all(each % step == 0 for each in sides)
        assert any(each % (2 * step) for each in sides)
