"""Presets: how much a training does, where a person leaves that open."""

from __future__ import annotations

from dataclasses import dataclass

from ..domaingallery_core.data.parts import DataSettings
from ..domaingallery_core.methods.terms import SIMILARITY
from ..domaingallery_core.run.optimizers import OptimizerSettings
from ..domaingallery_core.settings import settings_of

#: Number that stands for what the preset says; of a weight, which may be 0, any number below it does.
LEFT_OPEN = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Say what stands in the place of a number that is left open.

    Attributes:
        help: what a user reads about it.
        sources: how many source images are drawn of each category.
        steps, rate: how many times those that suit the model, see Family.length.
        batch_size, accumulation: as in DataSettings and OptimizerSettings.
        similarity: the weight of Eq. 4.
    """

    help: str
    sources: int = 1000
    steps: float = 1.0
    rate: float = 1.0
    batch_size: int = settings_of(DataSettings)["batch_size"][1]
    accumulation: int = settings_of(OptimizerSettings)["accumulation"][1]
    similarity: float = float(SIMILARITY.weight or 0.0)


#: What holds where no preset is chosen.
PAPER = "paper"
PRESETS = {
    "look": Preset(
        help="a first impression: 50 source images, a third of the steps at twice the rate, no similarity "
        "term",
        sources=50,
        steps=1 / 3,
        rate=2.0,
        similarity=0.0,
    ),
    PAPER: Preset(help="the paper's numbers"),
    "low memory": Preset(
        help="one image of each kind at a time, four of these for a step, no similarity term",
        batch_size=1,
        accumulation=4,
        similarity=0.0,
    ),
}
