"""Parts, and the order in which they are read."""

from __future__ import annotations

import re
from itertools import groupby, islice

import pytest
import torch
from toys import part

from domaingallery_core.data.examples import Examples
from domaingallery_core.data.parts import Batch, batches, read_parts, turns
from domaingallery_core.errors import InputError
from domaingallery_core.generators import generator


def numbered(count, shape=(1, 1, 1)):
    return Examples(torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(count, *shape))


def order_of(*parts, size, seed="order"):
    """Return batches of the domain alone."""
    return (step["domain"] for step in batches(parts, size, generator(0, seed)))


def reads(*wanted):
    return lambda kind, role: (kind, role) in wanted or (role == "domain" and kind in wanted)


def test_an_epoch_reads_every_source_image_once_and_targets_modulo_their_number():
    epoch = list(islice(order_of(part(numbered(10), numbered(40)), size=4), 10))

    source = torch.cat([batch.source for batch in epoch]).flatten()
    target = torch.cat([batch.target for batch in epoch]).flatten()
    assert sorted(source.tolist()) == list(range(40))
    assert torch.equal(target, source % 10)
    assert source.tolist() != sorted(source.tolist())


def test_the_second_epoch_has_another_order():
    order = order_of(part(source=numbered(40)), size=40)

    assert not torch.equal(next(order).source, next(order).source)


def test_batches_keep_their_size_across_epochs_and_for_small_sets():
    order = order_of(part(numbered(3)), size=4)

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
        order = islice(order_of(part(source=examples), size=4), 15)
        found.append(torch.cat([batch.source for batch in order]))

    assert torch.equal(*found)


def test_an_epoch_is_shuffled_when_it_begins():
    """Not a batch ahead, as the same numbers tell which variant is read."""
    stream, expected = generator(0, "order"), generator(0, "order")

    next(batches([part(source=numbered(4))], 4, stream))

    torch.randperm(4, generator=expected)
    assert torch.equal(stream.get_state(), expected.get_state())


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 1, 1)])
def test_different_sizes_are_refused(size):
    found = f"(1, 1, 1) (target) and {size!r} (source)"
    with pytest.raises(InputError, match=f"target and source latents of one size, got {re.escape(found)}"):
        part(numbered(2), numbered(2, size))
    everything, other = (lambda *_: True), numbered(2, size)
    with pytest.raises(InputError, match="domain and subject latents of one size"):
        read_parts(
            [part(numbered(2), numbered(2)), part(other, other, name="olis", role="subject")], everything
        )


def test_different_sizes_are_refused_whatever_a_run_reads_of_each():
    """Source images of the domain, say, and target images of a subject."""
    small, large = part(source=numbered(2)), part(numbered(2, (1, 2, 2)), name="olis", role="subject")

    with pytest.raises(InputError, match="domain and subject latents of one size"):
        read_parts([small, large], reads("source", ("target", "subject")))


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


def test_no_images_and_missing_ones_are_refused():
    images, olis = part(source=numbered(2)), part(source=numbered(2), name="olis", role="subject")
    first = part(source=numbered(2), name="first")
    with pytest.raises(InputError, match="neither"):
        part()
    for given, wanted, message in (
        ([images], ["target"], "target images of 'images' for this training"),
        ([images], [("source", "subject")], "images of a subject for this training"),
        ([images, olis], [("target", "subject")], "target images of 'olis' for this training"),
        ([images, images], ["source"], "parts of different names, got 'images' twice"),
        ([first, images, images], ["source"], "parts of different names, got 'images' twice"),
    ):
        with pytest.raises(InputError, match=f"Expected {message}"):
            read_parts(given, reads(*wanted))


def test_a_batch_is_of_one_category_and_all_target_images_count_alike():
    def of(count, offset):
        return Examples(offset + torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1))

    faces, houses = part(of(6, 0), of(20, 0), name="faces"), part(of(2, 100), of(20, 100), name="houses")

    found = list(islice(order_of(faces, houses, size=4), 40))

    for batch in found:
        assert set((batch.source >= 100).flatten().tolist()) == {batch.part is houses}
        assert set((batch.target >= 100).flatten().tolist()) == {batch.part is houses}
    assert sum(batch.part is houses for batch in found) == 10
    assert (
        max(len(list(run)) for key, run in groupby(batch.part.name for batch in found) if key != "faces") == 1
    )


@pytest.mark.parametrize("shares", [(6, 2), (1, 1), (5, 3), (2, 7)])
def test_turns_are_at_each_moment_as_near_to_the_shares_as_can_be(shares):
    taken = list(islice(turns(shares), 30))

    for step in range(1, 31):
        assert abs(taken[:step].count(0) - step * shares[0] / sum(shares)) <= 0.5


def test_turns_of_three_parts_come_back_to_their_shares():
    taken = list(islice(turns((4, 1, 2)), 21))

    assert [sorted(taken[i : i + 7]) for i in (0, 7, 14)] == [[0, 0, 0, 0, 1, 2, 2]] * 3


def test_turns_are_even_without_target_images():
    parts = [part(source=numbered(40), name="0"), part(source=numbered(3), name="1")]

    assert [batch.part.name for batch in islice(order_of(*parts, size=2), 4)] == ["0", "1", "0", "1"]


def test_a_subject_comes_with_every_batch():
    """And changes nothing of the order in which the domain is read, but the numbers that are drawn for it."""
    olis = part(numbered(2), numbered(5), name="olis", role="subject")
    faces, houses = (part(numbered(3), numbered(8), name=name) for name in ("faces", "houses"))

    found = list(islice(batches([olis, faces, houses], 5, generator(0, "order")), 4))

    for step, category in zip(found, (faces, houses, faces, houses), strict=True):
        assert step["domain"].part is category
        assert sorted(step["subject"].source.flatten().tolist()) == [0, 1, 2, 3, 4]
        assert torch.equal(step["subject"].target, step["subject"].source % 2)
    assert torch.equal(found[0]["domain"].source, next(order_of(faces, houses, size=5)).source)


def test_a_posterior_is_sampled_anew_each_time():
    """Samples have the mean and the deviation that the VAE gave."""
    examples = Examples(torch.full((1, 4, 16, 16), 5.0), torch.full((1, 4, 16, 16), 0.5))

    drawn = torch.cat([b.source for b in islice(order_of(part(source=examples), size=2, seed="o"), 4)])

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
    data = part(examples)

    drawn = torch.cat([b.target for b in islice(order_of(data, size=3), 40)]).flatten()

    assert len(data) == 3
    assert set(drawn.tolist()) == set(range(3 * each))
    assert [sorted(int(row) // each for row in drawn[i : i + 3]) for i in range(0, 120, 3)] == [
        [0, 1, 2]
    ] * 40


def test_masks_follow_their_images():
    masks = torch.arange(3.0).reshape(-1, 1, 1, 1) / 2
    data = part(Examples(torch.arange(3.0).reshape(-1, 1, 1, 1), masks=masks), numbered(7))

    for batch in islice(order_of(data, size=2), 5):
        assert torch.equal(batch.target / 2, batch.mask)


WHOLE = [part(numbered(2), numbered(2), name=name, validation=numbered(1)) for name in ("faces", "houses")]


def test_a_run_without_target_images_reads_none_in_any_category():
    for each in read_parts(WHOLE, reads("source")):
        assert each.target is None and each.validation is None and each.source is not None
    with pytest.raises(InputError, match="target images of 'dogs'"):
        read_parts([*WHOLE, part(source=numbered(2), name="dogs")], reads("target"))


def test_a_run_without_source_images_reads_none_in_any_category():
    for each in read_parts(WHOLE, reads("target")):
        assert each.source is None and each.target is not None and each.validation is not None


@pytest.mark.parametrize("wanted", [["target", "source"], ["target"], ["source"], []])
def test_a_run_reads_what_it_needs_of_a_subject(wanted):
    olis = part(numbered(2), numbered(5), name="olis", role="subject")

    found = read_parts([olis, *WHOLE], reads("target", *((kind, "subject") for kind in wanted)))

    assert [each.name for each in found] == ["faces", "houses", *(["olis"] if wanted else [])]
    assert not wanted or [kind for kind in ("target", "source") if getattr(found[-1], kind)] == wanted


def test_a_change_reaches_every_tensor_of_a_part():
    """And keeps what is absent absent."""
    target = Examples(torch.ones(4, 2, 1, 1), torch.ones(4, 2, 1, 1), torch.ones(4, 1, 1, 1), variants=2)
    source, one = Examples(torch.ones(2, 2, 1, 1)), Examples(torch.ones(1, 2, 1, 1))

    found = part(target, source, validation=one).map(lambda tensor: tensor + 1)

    assert found.target.variants == 2 and len(found.target) == 2
    assert all(
        bool((t == 2).all()) for t in (found.target.latents, found.target.deviation, found.target.masks)
    )
    for images in (found.source, found.validation):
        assert bool((images.latents == 2).all()) and images.deviation is None and images.masks is None
    bare = part(source=one).map(lambda tensor: tensor)
    assert (bare.target, bare.validation) == (None, None)


def test_a_batch_goes_to_a_device_with_all_that_it_holds():
    latents, mask = torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)

    full = Batch(WHOLE[0], latents, latents, mask).to("meta")
    bare = Batch(WHOLE[0], latents).to("meta")

    assert all(tensor.device.type == "meta" for tensor in (full.target, full.source, full.mask, bare.target))
    assert full.part is WHOLE[0] and bare.source is None and bare.mask is None


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
