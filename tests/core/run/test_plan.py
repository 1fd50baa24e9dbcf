"""Plans."""

from __future__ import annotations

import json
import math
import re

import pytest

from domaingallery_core.data.parts import ROLES
from domaingallery_core.errors import InputError
from domaingallery_core.run.plan import TrainingPlan

KINDS = ("target", "source")


def plan(**changes):
    return TrainingPlan.of(**{"method": "domaingallery", "steps": 10, "learning_rate": 1e-4} | changes)


def test_a_plan_survives_json():
    before = plan(weights=dict(similarity=0.5), denoise_guidance=3.0)

    assert TrainingPlan.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_the_defaults_are_those_of_the_paper():
    found = plan()

    assert (found.adapter.rank, found.adapter.alpha) == (4, 4.0)
    assert (found.data.batch_size, found.method.denoise_steps) == (4, 5)
    assert found.method.weights == {"prior": 1, "disentanglement": 10, "similarity": 1}
    assert plan(method="erasure").method.weights == {"prior": 1, "disentanglement": 10, "erasure": 10}


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"steps": True},
        {"learning_rate": 0},
        {"learning_rate": -1e-4},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"learning_rate": "fast"},
        {"batch_size": 0},
        {"batch_size": 2},
        {"method": "magic"},
        {"rank": 0},
        {"alpha": 0},
        {"dropout": 1},
        {"denoise_steps": 0},
        {"seed": -1},
        {"similarity_scale": "mine"},
        {"weights": {"prior": -1}},
        {"weights": {"style": 1}},
    ],
    ids=str,
)
def test_a_plan_that_cannot_work_is_refused_with_the_value(changes):
    [value] = changes.values()
    if isinstance(value, dict):  # the number, or the key where that is unknown
        value = [*value] if "style" in value else value["prior"]

    with pytest.raises(InputError, match=rf"got (also )?{re.escape(repr(value))}"):
        plan(**changes)


def test_two_images_a_batch_are_enough_without_the_similarity_term():
    assert plan(batch_size=2, weights={"similarity": 0}).data.batch_size == 2
    assert plan(batch_size=3).data.batch_size == 3
    assert plan(batch_size=1, method="erasure").data.batch_size == 1


def test_an_unknown_key_is_refused():
    with pytest.raises(InputError, match="'colour'"):
        TrainingPlan.from_dict(plan().to_dict() | {"colour": 1})
    with pytest.raises(InputError, match="'colour'"):
        plan(colour=1)


def test_erasure_without_any_weight_is_refused():
    with pytest.raises(InputError, match="above 0"):
        plan(method="erasure", weights=dict(prior=0, disentanglement=0, erasure=0))


def test_a_plan_knows_what_it_reads():
    only_target = dict(prior=0, disentanglement=0, similarity=0)

    def reads(**changes):
        settings = plan(**changes).method
        return {(kind, role) for kind in KINDS for role in ROLES if settings.reads(kind, role)}

    assert reads() == {("target", "domain"), ("source", "domain")}
    assert reads(weights=only_target) == {("target", "domain")}
    assert reads(method="erasure") == {("source", "domain")}
    assert reads(method="personalization") == {(kind, role) for kind in KINDS for role in ROLES}
    assert not plan().method.needs_empty() and plan(denoise_guidance=3.0).method.needs_empty()


@pytest.mark.parametrize("name", ["batch_size", "rank", "steps", "accumulation", "denoise_steps"])
@pytest.mark.parametrize("value", [0, 3.5])
def test_counts_are_whole_and_above_zero(name, value):
    with pytest.raises(InputError, match=f"Expected {name} to be"):
        plan(**{name: value})


@pytest.mark.parametrize(
    ("method", "trains"),
    [("dreambooth", "weights"), ("dreambooth_lora", "adapter"), ("textual_inversion", "tokens")],
)
def test_a_plan_has_the_settings_of_what_its_method_trains_and_no_others(method, trains):
    found = plan(method=method)

    assert found.trains == trains and getattr(found, trains) is not None
    assert {"adapter", "weights", "tokens"} & found.to_dict().keys() == {trains}
    assert TrainingPlan.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert plan(method=method, trains="adapter", rank=8).adapter.rank == 8


def test_settings_of_what_is_not_trained_are_refused():
    with pytest.raises(InputError, match="got also \\['rank'\\]"):
        plan(method="dreambooth", rank=8)
    with pytest.raises(InputError, match="trains one of adapter, weights, tokens, got adapter and tokens"):
        TrainingPlan.from_dict(plan().to_dict() | {"tokens": {"word": "dog"}})
    without = {name: group for name, group in plan().to_dict().items() if name != "adapter"}
    with pytest.raises(InputError, match="trains one of adapter, weights, tokens, got none"):
        TrainingPlan.from_dict(without)
