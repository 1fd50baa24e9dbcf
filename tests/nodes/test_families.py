"""Families of models in the real host: both stages, enhanced drawing, files; the bench tries all of them."""

from __future__ import annotations

import math

import pytest

from benchmarks.families import key_formats, try_family

FAMILIES = ["flux", "sd3", "wan2.1", "krea2", "hunyuan-video"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_draws_and_saves_what_the_host_loads(comfy, host, family):
    """Streams apart and in one, a guidance scale, a latent with frames; flow in all of them."""
    row = try_family(host, family, key_formats(host.client))

    assert row.kept, row
    assert set(row.losses["erase"]) == {"prior", "disentanglement", "erasure", "total"}
    assert set(row.losses["train"]) == {"target", "prior", "disentanglement", "similarity", "total"}
    values = [value for stage in row.losses.values() for term in stage.values() for value in term]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert row.losses["train"]["similarity"][-1] > 0
