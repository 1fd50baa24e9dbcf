"""The loss on fixed noise: which images it reads, under which prompts, and what it is the mean of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from killed_run import PLAN, run
from toys import WIDTH, ToyDenoiser, but, conditions, filled, inject, latents, network, part, random

from domaingallery_core.data.examples import Examples
from domaingallery_core.errors import InputError
from domaingallery_core.generators import generator
from domaingallery_core.model.denoiser import Condition, Conditions
from domaingallery_core.run.monitor import (
    IMAGES,
    LEVELS,
    Monitor,
    draw_previews,
    validation_loss,
    watched,
)
from domaingallery_core.run.trainer import train

FACES, HOUSES = Examples(latents(5, 1)), Examples(latents(2, 3))
SOURCE = Examples(latents(6, 2))


def two_categories():
    prompts = Conditions(**{name: Condition({"context": random(1, 3, WIDTH, seed=seed)})
                            for name, seed in (("target", 21), ("source", 22))})  # fmt: skip
    return part(FACES, SOURCE, name="faces"), part(HOUSES, SOURCE, name="houses", prompts=prompts)


def by_definition(denoiser, examples, condition):
    """Return the mean squared error of epsilon, one image and one level at a time."""
    stream, found = generator(0, "validation"), []
    for level in range(LEVELS):
        noise = torch.randn(examples.latents.shape, generator=stream)
        sigma = denoiser.process.sigmas[int((level + 0.5) * len(denoiser.process) / LEVELS)][None].float()
        for x0, epsilon in zip(examples.latents.split(1), noise.split(1), strict=True):
            x = x0 + sigma * epsilon
            found.append(((x - denoiser(x, sigma, condition)) / sigma - epsilon).square().mean())
    return float(torch.stack(found).mean())


def test_the_loss_of_several_categories_is_the_mean_over_their_images_each_under_its_prompt():
    parts = two_categories()
    denoiser, pairs = ToyDenoiser(network()), watched(parts)

    found = validation_loss(denoiser, pairs, 4)

    faces = by_definition(denoiser, FACES, parts[0].prompts.target)
    houses = by_definition(denoiser, HOUSES, parts[1].prompts.target)
    assert abs(faces / houses - 1) > 0.01
    assert found == pytest.approx((5 * faces + 2 * houses) / 7, rel=1e-5)
    alone = [validation_loss(denoiser, [pair], 4) for pair in pairs]
    assert alone == pytest.approx([faces, houses], rel=1e-5)


def test_an_image_in_many_crops_counts_once():
    pairs = watched(two_categories())
    crops = Examples(HOUSES.latents.repeat_interleave(3, dim=0), variants=3)
    denoiser = ToyDenoiser(network())

    found = validation_loss(denoiser, [pairs[0], (crops, pairs[1][1])], 4)

    alone = [validation_loss(denoiser, [pair], 4) for pair in (pairs[0], (crops, pairs[1][1]))]
    assert found == pytest.approx((5 * alone[0] + 2 * alone[1]) / 7)


def test_of_many_images_the_first_few_are_read():
    prompts, many = conditions(), latents(IMAGES + 3, 1)
    losses = []
    for rows in (many, many[:IMAGES]):
        denoiser = ToyDenoiser(network())
        losses.append(validation_loss(denoiser, [(Examples(rows), prompts)], 8))

        assert sum(denoiser.rows) == LEVELS * IMAGES
    assert losses[0] == losses[1]


def test_before_the_first_step_the_base_is_looked_at_also_where_a_lora_is_gone_on_with():
    parts, plan = [part(FACES, SOURCE)], but(PLAN, steps=1, warmup_steps=0, ema=0.0)
    monitor = Monitor(validate_every=1, preview_every=1, preview_steps=1)
    denoiser = ToyDenoiser(network())
    base = validation_loss(denoiser, watched(parts), plan.data.batch_size)
    blank = run(plan, parts=parts, monitor=monitor)

    adapter = filled(inject(denoiser.network, plan.adapter))
    found = train(denoiser, adapter, parts, plan, monitor=monitor)

    assert found.validation[0] == blank.validation[0] == base
    assert torch.equal(found.previews[0], blank.previews[0])
    assert found.validation[1] != pytest.approx(base)


def test_held_out_images_are_read_in_place_of_those_that_are_trained_on():
    faces, houses = two_categories()
    apart = replace(houses, validation=Examples(latents(1, 7)))
    subject = replace(apart, role="subject")

    assert [examples for examples, _ in watched([faces, houses, subject])] == [FACES, HOUSES]
    assert watched([faces, apart]) == [(apart.validation, houses.prompts)]
    assert [e for e, _ in watched([part(source=SOURCE), part(source=FACES)])] == [SOURCE, FACES]


def test_a_training_reads_the_loss_of_all_its_categories():
    faces, houses = two_categories()
    other = replace(houses, target=Examples(latents(2, 9)))

    plan, monitor = but(PLAN, steps=1, warmup_steps=0), Monitor(validate_every=1)
    found = [run(plan, parts=[faces, each], monitor=monitor) for each in (houses, other)]

    base = validation_loss(ToyDenoiser(network()), watched([faces, houses]), PLAN.data.batch_size)
    assert found[0].validation[0] == base
    assert found[1].validation[0] != base


class Levels(ToyDenoiser):
    """Keep the noise levels that are asked for."""

    def __call__(self, x, sigma, condition):
        self.levels = [*getattr(self, "levels", []), float(sigma[0])]
        return super().__call__(x, sigma, condition)


def test_pictures_begin_with_nothing_but_noise():
    denoiser = Levels(network())
    sigmas = denoiser.process.sigmas

    drawn = draw_previews(
        denoiser, FACES.latents, conditions(), Monitor(previews=3, preview_steps=2, preview_cfg=1.0), 2
    )

    assert drawn.shape == (3, *FACES.latents.shape[1:])
    assert denoiser.levels == pytest.approx(2 * [float(sigmas[-1]), float(sigmas[500])])


def test_the_lowest_numbers_that_work_are_taken():
    lowest = {"validate_every": 0, "preview_every": 0, "previews": 1, "preview_steps": 1, "preview_cfg": 0.0}

    monitor = Monitor(**lowest)

    assert {name: getattr(monitor, name) for name in lowest} == lowest
    assert not any(looks(step, 4) for looks in (monitor.validates, monitor.draws) for step in range(5))


def test_it_is_looked_at_the_beginning_every_few_steps_and_the_end():
    monitor = Monitor(validate_every=3, preview_every=5)

    assert [step for step in range(9) if monitor.validates(step, 8)] == [0, 3, 6, 8]
    assert [step for step in range(9) if monitor.draws(step, 8)] == [0, 5, 8]


@pytest.mark.parametrize(
    "changes",
    [
        {"validate_every": -1},
        {"validate_every": 0.5},
        {"preview_every": -1},
        {"preview_every": 0.5},
        {"previews": 0},
        {"previews": 1.5},
        {"preview_steps": 0},
        {"preview_steps": 2.5},
        {"preview_cfg": -1.0},
    ],
    ids=str,
)
def test_numbers_that_cannot_work_are_named(changes):
    with pytest.raises(InputError, match=f"Expected {next(iter(changes))} to be"):
        Monitor(**changes)
