"""How long a training is and how far its steps go, where a person leaves that to the model."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from ...domaingallery_core.run.optimizers import default_rate
from ...domaingallery_core.run.plan import TrainingPlan
from ..host.families import family_of
from ..sockets import TrainingOptions


def plan_on(
    model: ModelPatcher,
    options: TrainingOptions | None,
    method: str,
    steps: int,
    learning_rate: float,
    seed: int,
    **weights: float,
) -> TrainingPlan:
    """Return the plan of a run on a MODEL.

    Args:
        options: the paper's if there are none.
        steps, learning_rate: with 0, what the family of the MODEL has, as often as the preset says; an
            optimizer that has a rate of its own takes that.
        weights: those of terms that a node has itself.

    Raises:
        InputError: a value cannot work.
    """
    options = options or TrainingOptions()
    own_steps, own_rate = family_of(model).length(method)
    steps = steps or max(1, round(own_steps * options.preset.steps))
    suits = default_rate(options.values["optimizer"], own_rate * options.preset.rate)
    return options.plan(method, steps, learning_rate or suits, seed, **weights)
