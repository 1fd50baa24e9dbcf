"""Data order."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from domaingallery_core.datasets import Dataset, Examples, batches
from domaingallery_core.errors import InputError
from domaingallery_core.generators import generator


def numbered(count, shape=(1, 1, 1)):
    return Examples(torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(count, *shape))


def test_an_epoch_reads_every_source_image_once_and_targets_modulo_their_number():
    data = Dataset(target=numbered(10), source=numbered(40))

    epoch = list(islice(batches(data, 4, generator(0, "order")), 10))

    source = torch.cat([batch.source for batch in epoch]).flatten()
    target = torch.cat([batch.target for batch in epoch]).flatten()
    assert sorted(source.tolist()) == list(range(40))
    assert torch.equal(target, source % 10)
    assert source.tolist() != sorted(source.tolist())


def test_the_second_epoch_has_another_order():
    order = batches(Dataset(source=numbered(40)), 40, generator(0, "order"))

    assert not torch.equal(next(order).source, next(order).source)


def test_batches_keep_their_size_across_epochs_and_for_small_sets():
    order = batches(Dataset(target=numbered(3)), 4, generator(0, "order"))

    drawn = torch.cat([next(order).target for _ in range(3)]).flatten().tolist()

    assert [sorted(drawn[i : i + 3]) for i in range(0, 12, 3)] == [[0, 1, 2]] * 4


def test_the_same_seed_gives_the_same_order():
    data = Dataset(source=numbered(40))
    first, second = (islice(batches(data, 4, generator(7, "order")), 15) for _ in range(2))

    assert all(torch.equal(a.source, b.source) for a, b in zip(first, second, strict=True))


def test_different_sizes_are_refused():
    with pytest.raises(InputError, match="one size"):
        Dataset(target=numbered(2), source=numbered(2, (1, 2, 2)))


@pytest.mark.parametrize(
    "latents", [torch.zeros(0, 1, 1, 1), torch.zeros(3, 4), torch.full((1, 1, 1, 1), torch.nan)]
)
def test_broken_latents_are_refused(latents):
    with pytest.raises(InputError, match="Expected"):
        Examples(latents)


def test_no_images_and_missing_parts_are_refused():
    with pytest.raises(InputError, match="neither"):
        Dataset()
    with pytest.raises(InputError, match="target images"):
        Dataset(source=numbered(2)).restricted(target=True, source=True)
