"""The sweep draws what the sampling nodes draw, and puts it into one picture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.nodes.draw.drawing import SAMPLING, draw, latent, rows_of
from tests.nodes.tiny import host_module


def vae():
    """Return a VAE that shows three channels of a latent as they are, eight times as large."""

    def decode(samples):
        return samples[:, :3].movedim(1, -1).repeat_interleave(8, 1).repeat_interleave(8, 2)

    return SimpleNamespace(encode=decode, decode=decode)


def sweep(nodes, model, domain, **changes):
    options = SAMPLING | {"modes": "both", "enhancements": "0, 0.7", "latent_image": latent(1)} | changes
    inputs = {"vae": vae(), **options}
    with torch.inference_mode():
        return nodes("nodes.draw.sweep").DomainGallerySweep.execute(
            model, domain.first.target, domain.first.empty, domain, **inputs
        )[0]


def test_it_holds_what_the_sampling_nodes_draw(nodes, model, prompts, domain, monkeypatch):
    """Row by row; the pictures without enhancement are drawn once."""
    seen = []
    monkeypatch.setattr(nodes("nodes.draw.sweep"), "labelled_grid", lambda *args: seen.append(args))
    limits = {"start_percent": 0.2, "end_percent": 0.9, "rescale": 0.3}

    _, rows = rows_of(model, lambda: sweep(nodes, model, domain, enhancements="0, 0.7,-0.5", **limits))

    (cells, titles, columns), = seen  # fmt: skip
    assert titles == ["V-uncond", "VN-N"] and columns == ["0", "0.7", "-0.5"]
    for mode, row in zip(titles, cells, strict=True):
        for strength, cell in zip((0.0, 0.7, -0.5), row, strict=True):
            enhancement = {"mode": mode, "enhancement": strength, "prompts": domain, **limits}
            expected = draw(
                nodes, "Domain KSampler", model, prompts.target, prompts.empty, latent(1), enhancement
            )
            assert torch.equal(cell, vae().decode(expected))
    assert cells[0][0] is cells[1][0]
    assert len(rows) == 5 * SAMPLING["steps"]


def test_the_grid_is_one_image(nodes, model, domain):
    grid = sweep(nodes, model, domain, latent_image=latent(2))

    assert grid.shape[0] == 1 and grid.shape[-1] == 3
    assert grid.shape[1] > 4 * 64 and grid.shape[2] > 2 * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enhancements": " , "}, "1 to 100 enhancements, got 0"),
        ({"enhancements": ",".join(map(str, range(200)))}, "1 to 100 enhancements, got 200"),
        ({"enhancements": "0, much"}, "numbers with commas between them, got 'much'"),
        ({"enhancements": "1, nan"}, "numbers with commas between them, got 'nan'"),
        ({"start_percent": 0.9, "end_percent": 0.1}, "start_percent up to end_percent"),
        ({"cfg": float("nan")}, "cfg to be a finite number"),
        (
            {"vae": SimpleNamespace(encode=print, decode=print, latent_channels=3)},
            r"VAE of this model \(4 channels\), got one of 3",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(nodes, errors, model, domain, changes, message):
    def run():
        with pytest.raises(errors.InputError, match=message):
            sweep(nodes, model, domain, **changes)

    assert rows_of(model, run)[1] == []


def test_it_says_how_far_it_is_and_can_be_cancelled(nodes, model, domain, monkeypatch):
    management = host_module("comfy.model_management")
    seen = []

    class Watched(nodes("nodes.host.progress").Progress):
        def update(self, done, text, preview=None):
            seen.append((done, self.total, text))
            if done == 5:
                management.interrupt_current_processing()
            super().update(done, text, preview)

    monkeypatch.setattr(nodes("nodes.draw.sweep"), "Progress", Watched)

    with pytest.raises(management.InterruptProcessingException):
        sweep(nodes, model, domain)

    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5]
    assert {total for _, total, _ in seen} == {9}
    assert seen[0][2].startswith("0 of 3 pictures, ") and seen[3][2].startswith("1 of 3 pictures, ")
