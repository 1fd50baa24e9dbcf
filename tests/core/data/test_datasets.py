"""Data order."""

from __future__ import annotations

import re
from itertools import groupby, islice

import pytest
import torch

from domaingallery_core.data.datasets import Batch, Dataset, Examples, batches, turns
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


@pytest.mark.parametrize("kind", ["plain", "variants", "posterior"])
def test_the_same_seed_gives_the_same_batches(kind):
    """Whatever else draws random numbers."""
    rows = numbered(40)
    examples = {
        "plain": rows,
        "variants": Examples(rows.latents, variants=4),
        "posterior": Examples(rows.latents, torch.ones(rows.latents.shape)),
    }[kind]
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        order = islice(batches(Dataset(source=examples), 4, generator(7, "order")), 15)
        found.append(torch.cat([batch.source for batch in order]))

    assert torch.equal(*found)


def test_an_epoch_is_shuffled_when_it_begins():
    """Not a batch ahead, as the same numbers tell which variant is read."""
    stream, expected = generator(0, "order"), generator(0, "order")

    next(batches(Dataset(source=numbered(4)), 4, stream))

    torch.randperm(4, generator=expected)
    assert torch.equal(stream.get_state(), expected.get_state())


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 1, 1)])
def test_different_sizes_are_refused(size):
    found = f"(1, 1, 1) (target) and {size!r} (source)"
    with pytest.raises(InputError, match=f"target and source latents of one size, got {re.escape(found)}"):
        Dataset(target=numbered(2), source=numbered(2, size))
    for subject in (Dataset(target=numbered(2, size)), Dataset(source=numbered(2, size))):
        with pytest.raises(InputError, match="one size"):
            Dataset(source=numbered(2), subject=subject)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(0, 1, 1, 1), r"at least one image .* got the shape \(0, 1, 1, 1\)"),
        (torch.zeros(3, 4), r"at least one image .* got the shape \(3, 4\)"),
        (torch.full((1, 1, 1, 1), torch.nan), "finite latents, got NaN or infinity"),
    ],
)
def test_broken_latents_are_refused(latents, message):
    with pytest.raises(InputError, match=message):
        Examples(latents)


def test_no_images_and_missing_parts_are_refused():
    with pytest.raises(InputError, match="neither"):
        Dataset()
    with pytest.raises(InputError, match="target images"):
        Dataset(source=numbered(2)).restricted(target=True, source=True)
    for part in ("subject", "subject_source"):
        with pytest.raises(InputError, match="subject images"):
            Dataset(source=numbered(2)).restricted(target=False, source=True, **{part: True})


def test_one_category_is_read_as_without_categories():
    data = Dataset(target=numbered(3), source=numbered(8))
    two = Dataset(target=numbered(3), source=numbered(8), more=(data,))

    assert [part.source for part in two.parts()] == [two.source, data.source]
    found = list(islice(batches(data, 4, generator(0, "order")), 6))
    assert {batch.part for batch in found} == {0}
    assert torch.equal(found[0].target, found[0].source % 3)


def test_a_batch_is_of_one_category_and_all_target_images_count_alike():
    def of(count, offset):
        return Examples(offset + torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1))

    data = Dataset(target=of(6, 0), source=of(20, 0), more=(Dataset(target=of(2, 100), source=of(20, 100)),))

    found = list(islice(batches(data, 4, generator(0, "order")), 40))

    for batch in found:
        assert set((batch.source >= 100).flatten().tolist()) == {batch.part == 1}
        assert set((batch.target >= 100).flatten().tolist()) == {batch.part == 1}
    assert sum(batch.part for batch in found) == 10
    assert max(len(list(run)) for key, run in groupby(batch.part for batch in found) if key == 1) == 1


@pytest.mark.parametrize("shares", [(6, 2), (1, 1), (5, 3), (2, 7)])
def test_turns_are_at_each_moment_as_near_to_the_shares_as_can_be(shares):
    taken = list(islice(turns(shares), 30))

    for step in range(1, 31):
        assert abs(taken[:step].count(0) - step * shares[0] / sum(shares)) <= 0.5


def test_turns_of_three_parts_come_back_to_their_shares():
    taken = list(islice(turns((4, 1, 2)), 21))

    assert [sorted(taken[i : i + 7]) for i in (0, 7, 14)] == [[0, 0, 0, 0, 1, 2, 2]] * 3


def test_turns_are_even_without_target_images():
    data = Dataset(source=numbered(40), more=(Dataset(source=numbered(3)),))

    assert [b.part for b in islice(batches(data, 2, generator(0, "order")), 4)] == [0, 1, 0, 1]


def test_a_subject_comes_with_every_batch():
    subject = Dataset(target=numbered(2), source=numbered(5))
    plain = Dataset(target=numbered(3), source=numbered(8))
    data = Dataset(target=plain.target, source=plain.source, subject=subject, more=(plain,))

    found = list(islice(batches(data, 5, generator(0, "order")), 4))

    assert all(sorted(b.subject.source.flatten().tolist()) == [0, 1, 2, 3, 4] for b in found)
    assert all(torch.equal(b.subject.target, b.subject.source % 2) for b in found)


def test_a_posterior_is_sampled_anew_each_time():
    """Samples have the mean and the deviation that the VAE gave."""
    examples = Examples(torch.full((1, 4, 16, 16), 5.0), torch.full((1, 4, 16, 16), 0.5))

    drawn = torch.cat([b.source for b in islice(batches(Dataset(source=examples), 2, generator(0, "o")), 4)])

    assert float(drawn.mean()) == pytest.approx(5, abs=0.05)
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.05)
    assert not torch.equal(drawn[0], drawn[1])


def test_a_sample_of_a_posterior_is_its_mean_and_noise_times_its_deviation():
    mean, deviation = torch.randn(2, 3, 4, 5, 5).unbind()

    found, _ = Examples(mean, deviation).read(torch.tensor([2, 3]), generator(0, "order"))

    rows = [2, 0]
    noise = torch.randn((2, 4, 5, 5), generator=generator(0, "order"))
    assert torch.equal(found, mean[rows] + deviation[rows] * noise)


@pytest.mark.parametrize("each", [2, 4])
def test_a_variant_of_each_image_is_drawn(each):
    """Rows of an image follow each other, and over time all are read."""
    examples = Examples(torch.arange(3.0 * each).reshape(-1, 1, 1, 1), variants=each)
    data = Dataset(target=examples)

    drawn = torch.cat([b.target for b in islice(batches(data, 3, generator(0, "order")), 40)]).flatten()

    assert len(data) == 3
    assert set(drawn.tolist()) == set(range(3 * each))
    assert [sorted(int(row) // each for row in drawn[i : i + 3]) for i in range(0, 120, 3)] == [
        [0, 1, 2]
    ] * 40


def test_masks_follow_their_images():
    masks = torch.arange(3.0).reshape(-1, 1, 1, 1) / 2
    data = Dataset(target=Examples(torch.arange(3.0).reshape(-1, 1, 1, 1), masks=masks), source=numbered(7))

    for batch in islice(batches(data, 2, generator(0, "order")), 5):
        assert torch.equal(batch.target / 2, batch.mask)


def test_a_run_without_target_images_reads_none_in_any_category():
    data = Dataset(target=numbered(2), source=numbered(2), validation=numbered(1))
    data = Dataset(target=data.target, source=data.source, validation=data.validation, more=(data,))

    for part in data.restricted(target=False, source=True).parts():
        assert part.target is None and part.validation is None and part.source is not None
    with pytest.raises(InputError, match="target images"):
        Dataset(target=numbered(2), more=(Dataset(source=numbered(2)),)).restricted(target=True, source=False)


def test_a_run_without_source_images_reads_none_in_any_category():
    data = Dataset(target=numbered(2), source=numbered(2), validation=numbered(1))
    data = Dataset(target=data.target, source=data.source, validation=data.validation, more=(data,))

    for part in data.restricted(target=True, source=False).parts():
        assert part.source is None and part.target is not None and part.validation is not None


@pytest.mark.parametrize(("target", "source"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_run_reads_what_it_needs_of_a_subject(target, source):
    subject = Dataset(target=numbered(2), source=numbered(5))
    data = Dataset(target=numbered(3), source=numbered(8), subject=subject)

    found = data.restricted(target=True, source=True, subject=target, subject_source=source).subject

    read = (False, False) if found is None else (found.target is not None, found.source is not None)
    assert read == (target, source)


def test_a_change_reaches_every_tensor_of_a_dataset():
    """And keeps what is absent absent."""
    target = Examples(torch.ones(4, 2, 1, 1), torch.ones(4, 2, 1, 1), torch.ones(4, 1, 1, 1), variants=2)
    source, one = Examples(torch.ones(2, 2, 1, 1)), Examples(torch.ones(1, 2, 1, 1))
    whole = Dataset(target, source, Dataset(one, one), validation=one, more=(Dataset(target, source),))

    found = whole.map(lambda tensor: tensor + 1)

    for part in (found.target, found.more[0].target):
        assert part.variants == 2 and len(part) == 2
        assert all(bool((t == 2).all()) for t in (part.latents, part.deviation, part.masks))
    for part in (found.source, found.subject.target, found.subject.source, found.validation):
        assert bool((part.latents == 2).all()) and part.deviation is None and part.masks is None
    bare = Dataset(source=one).map(lambda tensor: tensor)
    assert (bare.target, bare.subject, bare.validation, bare.more) == (None, None, None, ())


def test_a_batch_goes_to_a_device_with_all_that_it_holds():
    latents, mask = torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    batch = Batch(latents, latents, mask, Batch(latents, None, mask), part=1).to("meta")

    moved = (batch.target, batch.source, batch.mask, batch.subject.target, batch.subject.mask)
    assert all(tensor.device.type == "meta" for tensor in moved)
    assert batch.part == 1 and batch.subject.source is None and batch.subject.subject is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"deviation": torch.zeros(3, 4, 2, 1)}, r"deviations like the latents, got \(3, 4, 2, 1\)"),
        ({"masks": torch.zeros(3, 4, 2, 2)}, r"masks \(R 1 H W\) like the latents, got \(3, 4, 2, 2\)"),
    ],
)
def test_what_belongs_to_latents_has_their_size(other, message):
    with pytest.raises(ValueError, match=message):
        Examples(torch.zeros(3, 4, 2, 2), **other)


@pytest.mark.parametrize("number", [0, 2])
def test_variants_are_as_many_for_each_image(number):
    with pytest.raises(ValueError, match="rows for each image, got 3 rows"):
        Examples(torch.zeros(3, 4, 2, 2), variants=number)
