"""Images become latents at one size, and source images depend on nothing but the inputs."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.tiny import host_module, tiny_model, tiny_prompts


class PlainVae:
    """A VAE of one channel of means, with a side of 8 pixels for each latent."""

    def encode(self, images):
        return torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 8)

    def decode(self, latents):
        return latents[:, :3].movedim(1, -1).clamp(0, 1)


def execute(nodes, source, target=None, vae=None, **options):
    """Call the node as the host does, with a list for each input."""
    target = target if target is None or isinstance(target, list) else [target]
    source = source if isinstance(source, list) else [source]
    options = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    with torch.inference_mode():
        return nodes("nodes.data.dataset").DomainGalleryDataset.execute(
            [vae or PlainVae()], source, target, **options
        )[0]


def test_target_images_take_the_size_of_the_source_images(nodes, comfy):
    [part] = execute(nodes, torch.rand(20, 32, 32, 3), torch.rand(3, 48, 64, 4)).parts

    assert part.source.latents.shape == (20, 3, 4, 4)
    assert part.target.latents.shape == (3, 3, 4, 4)


def test_images_of_the_right_size_are_not_touched(nodes):
    core = nodes("domaingallery_core.data.images")
    images = torch.rand(2, 32, 32, 3)

    assert torch.equal(core.centre_crop(core.cover(images, (32, 32)), (32, 32)), images)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (33, 47), (300, 200)])
def test_the_centre_is_kept(nodes, height, width):
    """A bright cross through the centre stays there, whichever side is cropped."""
    images = torch.zeros(1, height, width, 3)
    images[:, height // 2 - 4 : (height + 1) // 2 + 4] = 1
    images[:, :, width // 2 - 4 : (width + 1) // 2 + 4] = 1

    core = nodes("domaingallery_core.data.images")

    cropped = core.centre_crop(core.cover(images, (32, 32)), (32, 32))[0, ..., 0]

    assert cropped.shape == (32, 32)
    assert cropped[15:17].mean() > cropped[:4].mean()
    torch.testing.assert_close(cropped, cropped.flip(0).flip(1), atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.rand(0, 32, 32, 3), None, "source images, got an empty batch"),
        (torch.rand(2, 32, 32, 3), torch.rand(0, 32, 32, 3), "target images, got an empty batch"),
        (torch.rand(2, 32, 32), None, "source images as a batch of RGB images"),
        (torch.rand(2, 32, 32, 3), torch.rand(2, 12, 12, 3), r"of about 32 x 32 pixels.*got 12 x 12"),
        (torch.rand(2, 32, 32, 3) / 0, None, r"images \(number 1\) of plain numbers"),
        (torch.rand(2, 32, 32, 3), torch.full((1, 32, 32, 3), float("nan")), r"target images \(number 1\)"),
    ],
)  # fmt: skip
def test_images_that_cannot_work_are_named(nodes, errors, source, target, message):
    with pytest.raises(errors.InputError, match=message):
        execute(nodes, source, target)


@pytest.fixture
def drawn(comfy, nodes):
    model, prompts = tiny_model(), tiny_prompts(nodes)

    def draw(count: int, *, seed: int = 3, batch_size: int = 4, sampler_name: str = "euler") -> torch.Tensor:
        with torch.inference_mode():
            return nodes("nodes.data.source_images").DomainGallerySourceImages.execute(
                model, PlainVae(), prompts, count=count, width=64, height=64, steps=2, cfg=3.0,
                sampler_name=sampler_name, scheduler="normal", batch_size=batch_size, seed=seed,
            )[0][0].latents  # fmt: skip

    return draw


def test_source_images_are_as_many_and_as_large_as_asked(drawn):
    assert drawn(5, batch_size=2).shape == (5, 4, 8, 8)


def test_source_images_repeat_by_seed_and_differ_from_each_other(drawn):
    first = drawn(4)

    assert torch.equal(first, drawn(4))
    assert not torch.equal(first, drawn(4, seed=4))
    assert not torch.allclose(first[0], first[1])


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_each_source_image_has_noise_of_its_own(drawn, sampler_name):
    """Image i is the one that the seed i later begins with, so an image more or less moves no other."""
    four = drawn(4, batch_size=1, sampler_name=sampler_name)

    for number in range(4):
        alone = drawn(1, seed=3 + number, batch_size=1, sampler_name=sampler_name)
        assert torch.equal(four[number], alone[0])
    assert all(not torch.allclose(four[0], other) for other in four[1:])


def test_source_images_do_not_depend_on_the_batch_size_or_their_number(drawn):
    torch.testing.assert_close(drawn(5, batch_size=5), drawn(5, batch_size=2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(drawn(5)[:3], drawn(3), rtol=1e-3, atol=1e-3)


def test_the_largest_seed_works(drawn):
    assert torch.isfinite(drawn(2, seed=2**64 - 1, batch_size=1)).all()


def test_drawing_can_be_cancelled(drawn, monkeypatch):
    management = host_module("comfy.model_management")
    management.interrupt_current_processing(True)

    with pytest.raises(management.InterruptProcessingException):
        drawn(4)

    assert not management.processing_interrupted()


@pytest.mark.parametrize(
    ("identifier", "category", "message"),
    [
        ("", "face", "Expected an identifier, got ''"),
        ("  ", "face", "Expected an identifier"),
        ("sks", "", "Expected a category, got ''"),
        ("Face", "face ", "identifier that differs from the category"),
    ],
)
def test_words_that_cannot_work_are_named(nodes, errors, identifier, category, message):
    with pytest.raises(errors.InputError, match=message):
        nodes("nodes.data.prompts").checked_words(identifier, category)


def test_prompts_are_made_of_the_words(nodes):
    read = []

    class Clip:
        def tokenize(self, text):
            read.append(text)
            return text

        def encode_from_tokens_scheduled(self, text):
            return [[torch.tensor([[[float(len(text))]]]), {}]]

    out = nodes("nodes.data.prompts").DomainGalleryPrompts.execute(Clip(), " sks", "old face")

    assert [conditioning[0][0].item() for conditioning in out.result[1:]] == [14, 10, 3, 0]
    assert {"a sks old face", "a old face", "sks", ""} == {*read}
    assert (out[0].first.target_text, out[0].first.source_text) == ("a sks old face", "a old face")
