"""The flow transformer of the sketchbook's world: its training, and a few steps of the whole method."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.flow.features import CHOICES, NONE, reading
from benchmarks.flow.method import SHORT
from benchmarks.flow.model import FULL, THIN, build_flow, load_flow
from benchmarks.flow.training import Training, initialise, is_plain
from benchmarks.flow_world import LIMITS, features_table, kept, rows, run, table

LEAST, PICTURES = 6, 24


@pytest.fixture
def sketchbook(nodes):
    """Return the module that builds the demo model."""
    return nodes("nodes.demo.sketchbook")


@pytest.fixture
def flow(sketchbook):
    """Return a MODEL of the transformer, untrained."""
    network = build_flow(sketchbook, FULL).diffusion_model
    initialise(network, torch.Generator().manual_seed(0))
    return load_flow(sketchbook, FULL, network.state_dict())


@pytest.mark.timeout(300)
def test_the_whole_method_runs_on_it_and_measures_what_the_demo_does(host_path, pack, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.demo.measure.LEAST", LEAST)

    report = run(
        host_path, tmp_path, 1e-4, size=THIN, pictures=PICTURES, numbers=SHORT, least=LEAST,
        features=("all", NONE),
    )  # fmt: skip

    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "gallery.png").exists()
    assert report["steps"] >= 1 and set(report["domain_share"]["cross"]) == {"none", "V-uncond", "VN-N"}
    assert list(rows(report)) == list(LIMITS)
    assert list(report["features"]) == ["all", NONE]
    assert all(name in table(report) for name in LIMITS)
    assert len(features_table(report["features"]).splitlines()) == 3


def test_a_training_goes_on_where_it_ended(sketchbook, tmp_path):
    first = Training(sketchbook, tmp_path, THIN, pictures=PICTURES)
    first.run(1e-4, report=lambda text: None)

    again = Training(sketchbook, tmp_path, THIN, pictures=PICTURES)

    assert (again.step, again.seconds) == (first.step, first.seconds)
    assert all(torch.equal(again.average[name], value) for name, value in first.average.items())
    again.run(again.seconds / 60 + 1e-4, report=lambda text: None)
    assert again.step > first.step


def test_it_learns_a_flow(sketchbook, tmp_path):
    training = Training(sketchbook, tmp_path, THIN, pictures=PICTURES)

    losses = [training.train_step(3e-3) for _ in range(15)]

    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_it_learns_from_what_the_host_encodes(sketchbook, tmp_path):
    training = Training(sketchbook, tmp_path, THIN, pictures=PICTURES)
    _, clip, _ = sketchbook.load_sketchbook()
    caption = training.captions[0]

    with torch.no_grad():
        context, _, pooled, _ = training.text(torch.tensor([training.tokens[caption]]))

    with torch.inference_mode():
        [[expected, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
    assert torch.allclose(context, expected.float(), atol=1e-5)
    assert torch.allclose(pooled, extra["pooled_output"].float(), atol=1e-5)


def test_pictures_in_a_style_are_left_out():
    assert is_plain("a red house") and is_plain("sks") and is_plain("red with a hat")
    assert not is_plain("a pencil drawing of a sks cat") and not is_plain("a comic of red")


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_of_features_is_read_for_a_while(flow, nodes, pack, choice):
    family = nodes("nodes.host.families").family_of(flow)
    network = flow.model.diffusion_model
    default = family.read(network)

    with reading(pack.__name__, choice):
        read = family.read(network)

    assert read == CHOICES[choice](network)
    assert (read == default) == (choice == "first half")
    assert family.read(network) == default


def test_an_enhancement_must_be_above_none():
    assert not kept("others, V-uncond less none", 0.0)
    assert kept("others, V-uncond less none", 0.01)
    assert kept("prior, erased", 0.1) and not kept("prior, erased", 0.11)
