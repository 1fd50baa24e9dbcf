"""From the inputs of the training nodes to the plans of their runs."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ...domaingallery_core.plan import TrainingPlan
from ..sockets import TrainingOptions


def plan_of(
    method: str, steps: int, learning_rate: float, seed: int, options: TrainingOptions, **weights: float
) -> TrainingPlan:
    """Return the plan of a run; `weights` overrides loss weights."""
    settings: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(options)}
    settings |= {"adapter_kind": settings.pop("adapter"), "weights": replace(options.weights, **weights)}
    return TrainingPlan(method=method, steps=steps, learning_rate=learning_rate, seed=seed, **settings)


def erasure_plan(steps: int, learning_rate: float, seed: int, options: TrainingOptions) -> TrainingPlan:
    """Return the plan of Erase Prior Attributes."""
    return plan_of("erasure", steps, learning_rate, seed, options, similarity=0.0)


def domain_plan(steps: int, learning_rate: float, seed: int, options: TrainingOptions) -> TrainingPlan:
    """Return the plan of Train Domain LoRA."""
    return plan_of("domaingallery", steps, learning_rate, seed, options, erasure=0.0)


def personalization_plan(
    steps: int, learning_rate: float, seed: int, options: TrainingOptions, subject_weight: float
) -> TrainingPlan:
    """Return the plan of Train Personalized LoRA."""
    return plan_of(
        "personalization", steps, learning_rate, seed, options, erasure=0.0, subject=subject_weight
    )
