"""What decides a run where nothing else is said, as a table."""

from __future__ import annotations

from said import explained, said

from domaingallery_core.run.optimizers import OPTIMIZERS, OptimizerSettings
from domaingallery_core.run.plan import GROUPS, TrainingPlan
from domaingallery_core.settings import Setting


def test_weights_move_as_in_the_released_code_unless_it_is_said_otherwise():
    assert said(OptimizerSettings) == {
        "steps": (1000, Setting(least=1)),
        "learning_rate": (1e-4, Setting(above=True)),
        "accumulation": (1, Setting(least=1, most=1000)),
        "schedule": ("constant", Setting(choices=("constant", "linear", "cosine"))),
        "warmup_steps": (0, Setting(most=100000)),
        "ema": (0.0, Setting(most=0.99999, step=0.001, digits=5)),
        "optimizer": ("adamw", Setting(choices=tuple(OPTIMIZERS))),
        "max_grad_norm": (1.0, Setting(above=True)),
        "weight_decay": (1e-2, Setting()),
        "text_encoder_rate": (0.0, Setting(most=1.0, step=1e-6)),
    }
    shown = {"accumulation", "schedule", "warmup_steps", "ema", "optimizer", "text_encoder_rate"}
    assert explained(OptimizerSettings) == shown


def test_images_are_read_as_in_the_paper_unless_it_is_said_otherwise():
    assert said(GROUPS["data"]) == {"batch_size": (4, Setting(least=1, most=64))}
    assert explained(GROUPS["data"]) == {"batch_size"}


def test_a_plan_has_these_groups_and_settings_of_its_own():
    assert list(GROUPS) == ["method", "data", "adapter", "optimizer"]
    assert said(TrainingPlan) == {
        "seed": (0, Setting()),
        "precision": ("automatic", Setting(choices=("automatic", "float32", "bfloat16"))),
    }
    assert explained(TrainingPlan) == {"precision"}
