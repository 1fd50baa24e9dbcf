"""The loop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import toys
from toys import Network, ToyDenoiser, conditions, latents, network, part

from domaingallery_core.errors import InputError, TrainingError
from domaingallery_core.generators import generator
from domaingallery_core.model.denoiser import Conditions
from domaingallery_core.run import trainer
from domaingallery_core.run.checkpoints import Checkpoints
from domaingallery_core.run.monitor import Monitor
from domaingallery_core.run.plan import TrainingPlan
from domaingallery_core.run.trainer import train
from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.adapters import Adapter, ordinary_weights


def plan(method="domaingallery", **changes):
    return toys.plan(method, **{"steps": 4} | changes)


IMAGES = part(latents(5, 1), latents(12, 2))
WITHOUT_EMPTY = replace(IMAGES, prompts=replace(conditions(), empty=None))
TARGET_ALONE = Conditions(target=conditions().target)


def run(settings, on_step=None, model=None, parts=(IMAGES,), denoiser=None, monitor=None):
    model = model or network()
    with Adapter.inject(model, settings.adapter, generator(settings.seed, "adapter")) as adapter:
        return train(
            denoiser or ToyDenoiser(model),
            adapter,
            parts,
            settings,
            on_step,
            monitor=monitor,
        )


@pytest.mark.parametrize("method", ["erasure", "domaingallery", "plain"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_plan_gives_the_same_bytes(method, dropout):
    settings = plan(method, dropout=dropout, offset_noise=0.1)
    state = torch.get_rng_state()

    first = run(settings)
    torch.manual_seed(99)
    second = run(settings)
    torch.set_rng_state(state)

    assert first.state_dict.keys() == second.state_dict.keys()
    assert all(torch.equal(v, second.state_dict[k]) for k, v in first.state_dict.items())
    assert first.losses == second.losses
    assert any(float(v.abs().max()) > 0 for k, v in first.state_dict.items() if "lora_B" in k)


@pytest.mark.parametrize("most", [1e-3, 1e3])
def test_gradients_are_clipped(monkeypatch, most):
    """The optimizer gets none with a norm above that of the plan, and those below it as they are."""
    before, given = [], []
    clip, step = torch.nn.utils.clip_grad_norm_, torch.optim.AdamW.step

    def norm(parameters):
        return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())

    def clipping(parameters, *options):
        before.append(norm(parameters))
        return clip(parameters, *options)

    def stepping(optimizer, *rest):
        given.append(norm([p for group in optimizer.param_groups for p in group["params"]]))
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipping)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    run(plan(max_grad_norm=most))

    assert len(given) == 4 and all(1e-3 < norm < 1e3 for norm in before)
    expected = [min(norm, most) for norm in before]
    assert given == pytest.approx(expected, rel=1e-3)


def test_another_seed_gives_another_result():
    first, second = run(plan(seed=1)), run(plan(seed=2))

    assert any(not torch.equal(v, second.state_dict[k]) for k, v in first.state_dict.items())


def test_training_leaves_the_global_generator_alone():
    state = torch.get_rng_state()

    run(plan(dropout=0.5))

    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_goes_down():
    losses = run(
        plan("erasure", steps=150, learning_rate=2e-2, weights=dict(disentanglement=0, erasure=0))
    ).losses

    assert sum(losses["prior"][-30:]) < 0.9 * sum(losses["prior"][:30])


def test_every_step_is_told_with_its_terms():
    events = []

    result = run(plan(), events.append)

    assert [event.step for event in events] == [1, 2, 3, 4]
    assert events[0].losses.keys() == {"target", "prior", "disentanglement", "similarity", "total"}
    assert events[0].losses["total"] == pytest.approx(
        events[0].losses["target"]
        + events[0].losses["prior"]
        + 10 * events[0].losses["disentanglement"]
        + events[0].losses["similarity"]
    )
    assert result.losses["total"] == [event.losses["total"] for event in events]


def test_a_step_is_told_with_the_mean_seconds_of_the_steps(monkeypatch):
    now, events, model = [100.0], [], network()
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now[0])

    class Slow(ToyDenoiser):
        def __call__(self, x, sigma, condition):
            now[0] += 6.0
            return super().__call__(x, sigma, condition)

    def on_step(event):
        events.append(event)
        now[0] += 2.0

    result = run(plan("plain"), on_step, model=model, denoiser=Slow(model))

    assert [event.seconds_per_step for event in events] == [6.0, 14 / 2, 22 / 3, 30 / 4]
    assert result.seconds == 32.0


def test_a_step_is_told_with_its_learning_rate_and_a_look_before_the_first_with_none():
    events = []

    run(plan("plain"), events.append, monitor=Monitor(validate_every=4))

    assert [(event.step, event.learning_rate) for event in events] == [
        (0, 0.0),
        *((n, 1e-2) for n in range(1, 5)),
    ]


def test_what_a_step_does_not_use_stays_as_it_is():
    """Neither momentum nor decay moves it."""
    model, settings, seen = network(), plan("plain", weights=dict(prior=0), steps=3), []

    class InTurns(ToyDenoiser):
        def __call__(self, x, sigma, condition):
            if len(self.rows) % 2 == 0:
                return super().__call__(x, sigma, condition)
            self.network.attn2.forward = lambda h, context: torch.zeros_like(h)
            try:
                return super().__call__(x, sigma, condition)
            finally:
                del self.network.attn2.forward

    with toys.inject(model, settings.adapter) as adapter:
        train(InTurns(model), adapter, [IMAGES], settings, lambda event: seen.append(adapter.state_dict()))

    first, second, third = seen
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert {name.split(".")[0] for name in moved} == {"attn1"}
    assert any(not torch.equal(second[name], third[name]) for name in first if name.startswith("attn2"))


def test_what_on_step_raises_ends_the_run_and_the_model_is_as_before():
    model = network()
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}

    def interrupt(event):
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(), interrupt, model=model)

    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(id(after[n]) == i and torch.equal(after[n], value) for n, (i, value) in before.items())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_is_enough_ends_there_is_kept_and_goes_on_to_the_same_bytes(tmp_path, ema):
    settings, model = plan(steps=5, ema=ema), network()
    done = []

    def sitting(steps=None):
        files = Checkpoints(tmp_path, {"run": 1})
        with Adapter.inject(model, settings.adapter, generator(settings.seed, "adapter")) as adapter:
            with files.claimed():
                return train(
                    ToyDenoiser(model), adapter, [IMAGES], settings, done.append, checkpoints=files,
                    enough=lambda: len(done) + 1 == steps,
                )  # fmt: skip

    expected = run(settings, model=model)
    short = sitting(3)
    assert (short.steps, len(short.losses["total"]), done[-1].step) == (3, 3, 3)
    assert short.losses["total"] == expected.losses["total"][:3]
    assert not all(torch.equal(v, expected.state_dict[k]) for k, v in short.state_dict.items())

    whole = sitting()

    assert (whole.steps, whole.resumed) == (5, 3)
    assert all(torch.equal(v, expected.state_dict[k]) for k, v in whole.state_dict.items())
    assert whole.losses == expected.losses


def test_training_works_from_inference_mode_on_inference_tensors():
    """A model is given none of them, as it could not save them for its gradient."""

    class Ordinary(ToyDenoiser):
        def __call__(self, x, sigma, condition):
            given.extend((x, sigma, *condition.tensors.values()))
            return super().__call__(x, sigma, condition)

        def features(self, x, sigma, condition):
            given.extend((x, sigma, *condition.tensors.values()))
            return super().features(x, sigma, condition)

    given, settings = [], plan()
    expected = run(settings)
    with torch.inference_mode():
        model = Network().eval()
        for mine, other in zip(model.parameters(), network().parameters(), strict=True):
            mine.copy_(other)
        parts = [part(latents(5, 1).clone(), latents(12, 2).clone())]
        with ordinary_weights(model):
            found = run(settings, model=model, parts=parts, denoiser=Ordinary(model))
        assert given and not any(tensor.is_inference() for tensor in given)
        assert model.attn1.to_q.weight.is_inference()

    assert all(torch.equal(v, found.state_dict[k]) for k, v in expected.state_dict.items())


def test_target_alone_equals_dreambooth_without_prior_step_for_step():
    none = dict(prior=0, disentanglement=0, erasure=0, similarity=0)

    first, second = run(plan(weights=none)), run(plan("plain", weights=none))

    assert all(torch.equal(v, second.state_dict[k]) for k, v in first.state_dict.items())


class Broken(ToyDenoiser):
    """Give NaN in some calls."""

    def __init__(self, model, bad):
        super().__init__(model)
        self.bad = bad

    def __call__(self, x, sigma, condition):
        x0 = super().__call__(x, sigma, condition)
        return x0 * math.nan if len(self.rows) in self.bad else x0


def test_a_step_that_is_not_finite_is_skipped(caplog):
    model, events = network(), []
    settings = plan("plain", steps=6)

    result = run(settings, events.append, model=model, denoiser=Broken(model, {2, 3}))

    assert len(events) == 6 and len(result.losses["total"]) == 4 and result.skipped == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"Step {step} is skipped: its loss or the gradient is not finite." for step in (2, 3)
    ]
    assert all(bool(torch.isfinite(v).all()) for v in result.state_dict.values())


def test_only_steps_in_a_row_that_are_not_finite_stop_a_run():
    model = network()
    broken = Broken(model, {1, 2, 3, 4, 6, 7, 8, 9})

    result = run(plan("plain", steps=10), model=model, denoiser=broken)

    assert result.skipped == 8 and len(result.losses["total"]) == 2


def test_losses_that_stay_broken_stop_the_run():
    model, events = network(), []
    with pytest.raises(TrainingError, match="5 steps in a row"):
        run(plan("plain", steps=50), events.append, model=model, denoiser=Broken(model, set(range(100))))

    assert len(events) == 4


def test_losses_without_a_gradient_are_named():
    class Stopped(ToyDenoiser):
        def __call__(self, x, sigma, condition):
            return super().__call__(x, sigma, condition).detach()

    model = network()
    with pytest.raises(TrainingError, match="Expected losses with a gradient, got some without"):
        run(plan("plain"), model=model, denoiser=Stopped(model))


def test_a_run_too_short_to_be_stopped_for_its_losses_fails_if_none_was_finite():
    model = network()
    with pytest.raises(TrainingError, match="got none in 3 steps"):
        run(plan("plain", steps=3), model=model, denoiser=Broken(model, {1, 2, 3}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parts": [replace(IMAGES, target=None)]}, "target images of 'images'"),
        ({"parts": [replace(IMAGES, source=None)]}, "source images of 'images'"),
        ({"parts": [IMAGES, replace(IMAGES, name="b", source=None)]}, "source images of 'b'"),
        ({"parts": []}, "images of a domain"),
        ({"parts": [replace(IMAGES, prompts=TARGET_ALONE)]}, "source prompt"),
        ({"parts": [WITHOUT_EMPTY], "settings": plan(denoise_guidance=2.0)}, "empty prompt"),
        ({"parts": [WITHOUT_EMPTY], "monitor": Monitor(preview_every=1)}, "empty prompt"),
    ],
)
def test_missing_images_and_prompts_are_refused_before_the_first_step(changes, named):
    denoiser = ToyDenoiser(model := network())
    with pytest.raises(InputError, match=f"Expected (the )?{named}"):
        run(**{"settings": plan(), "model": model, "denoiser": denoiser} | changes)

    assert not denoiser.rows


@pytest.mark.parametrize("monitor", [None, Monitor(preview_every=4, preview_steps=1, preview_cfg=1.0)])
def test_without_guidance_no_empty_prompt_is_needed(monitor):
    assert run(plan(), parts=[WITHOUT_EMPTY], monitor=monitor).steps == 4
    assert run(plan("erasure", denoise_guidance=2.0), parts=[WITHOUT_EMPTY], monitor=monitor).steps == 4


def test_the_similarity_term_needs_three_source_images_of_each_category():
    few, enough = (part(latents(5, 1), latents(n, 2), name=str(n)) for n in (2, 3))

    assert run(plan(), parts=[enough]).steps == 4
    assert run(plan(weights=dict(similarity=0)), parts=[few]).steps == 4
    assert run(plan("erasure"), parts=[few]).steps == 4, "which has no such term"
    for parts in ([few], [enough, few]):
        with pytest.raises(InputError, match=r"at least 3 source images of each category .*, got 2"):
            run(plan(), parts=parts)


def test_the_same_category_twice_reads_the_prompts_of_each():
    """A training with a second category differs from one without, and by its prompt alone from another."""

    def trained(*prompts):
        denoiser = ToyDenoiser(network())
        parts = [part(source=latents(6, 1), name=str(n), prompts=p) for n, p in enumerate(prompts)]
        with Adapter.inject(denoiser.network, AdapterSettings(), generator(0, "adapter")) as adapter:
            plan = TrainingPlan.of(method="erasure", steps=2, learning_rate=1e-2)
            return train(denoiser, adapter, parts, plan).state_dict

    first = conditions()
    second = Conditions(target=first.source, source=first.target)
    one, two, three = trained(first), trained(first, first), trained(first, second)

    name = next(iter(one))
    assert not torch.equal(one[name], three[name])
    assert not torch.equal(two[name], three[name])
