"""Random streams."""

from __future__ import annotations

import torch

from domaingallery_core.generators import generator


def test_streams_of_one_seed_differ_by_purpose_and_those_of_one_purpose_by_seed():
    streams = [(0, "order"), (0, "noise"), (1, "order"), (2**64 - 1, "order")]

    drawn = {tuple(torch.randint(2**62, (2,), generator=generator(*each)).tolist()) for each in streams}

    assert len(drawn) == len(streams)


def test_a_seed_means_the_same_in_each_release():
    """Or a run that goes on after an update would read other batches than it says."""
    assert generator(0, "order").initial_seed() == 5231958647509549229
    assert generator(0, "order").device.type == "cpu"
