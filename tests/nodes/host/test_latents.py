"""Latents with and without an axis for frames."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.tiny import tiny_latents, tiny_model


@pytest.fixture
def film(comfy):
    """Return a MODEL whose latents have an axis for frames."""
    return tiny_model(latent_format=importlib.import_module("comfy.latent_formats").Wan21)


def test_images_for_a_network_of_films_are_films_of_one_frame(nodes, film):
    latents = nodes("nodes.host.pixels.latents")
    images = torch.randn(2, 16, 4, 4)

    assert latents.with_frames(film, images).shape == (2, 16, 1, 4, 4)
    assert torch.equal(latents.without_frames(latents.with_frames(film, images)), images)
    assert latents.with_frames(tiny_model(), tiny_latents(2)).shape == (2, 4, 8, 8)


def test_training_sees_what_the_format_of_the_model_makes_of_them(nodes, film):
    latents, form = nodes("nodes.host.pixels.latents"), film.model.latent_format
    images = torch.randn(2, 16, 4, 4)

    seen = latents.training_latents(film, images)

    assert torch.equal(seen, form.process_in(images[:, :, None])[:, :, 0])
    torch.testing.assert_close(latents.vae_latents(film, seen)[:, :, 0], images)


def test_the_scale_of_a_deviation_has_no_frames(nodes, film):
    latents, form = nodes("nodes.host.pixels.latents"), film.model.latent_format
    one, zero = (form.process_in(torch.full((1, 16, 1, 1, 1), end)) for end in (1.0, 0.0))

    torch.testing.assert_close(latents.deviation_scale(film, 16), (one - zero)[:, :, 0])


@pytest.mark.parametrize("shape", [(2, 16, 3, 4, 4), (2, 16, 4)])
def test_films_and_sounds_are_refused(nodes, errors, shape):
    with pytest.raises(errors.InputError, match="Expected latents of images"):
        nodes("nodes.host.pixels.latents").without_frames(torch.zeros(shape))


class FilmVae:
    """Take a batch for the frames of a film, as the VAEs of films do."""

    latent_dim, latent_channels = 3, 16

    def encode(self, pixels):
        frames = pixels.movedim(-1, 1)[:, :1, ::8, ::8].repeat(1, 16, 1, 1)
        return frames.movedim(0, 1).unsqueeze(0)


def test_a_vae_of_films_gets_images_one_by_one(nodes):
    images = [torch.full((1, 32, 32, 3), value) for value in (0.1, 0.5, 0.9)]

    found = nodes("nodes.host.pixels.encoding").encode(FilmVae(), images)

    assert found.latents.shape == (3, 16, 4, 4) and found.deviation is None
    torch.testing.assert_close(found.latents[:, 0, 0, 0], torch.tensor([0.1, 0.5, 0.9]))


def test_a_vae_with_frames_that_takes_images_as_they_are_gets_them_together(nodes):
    calls = []
    vae = SimpleNamespace(
        latent_dim=3, not_video=True,
        encode=lambda pixels: calls.append(len(pixels)) or torch.zeros(len(pixels), 4, 1, 4, 4),
    )  # fmt: skip

    assert nodes("nodes.host.pixels.encoding").encode(vae, [torch.zeros(1, 32, 32, 3)] * 3).latents.ndim == 4
    assert calls == [3]
