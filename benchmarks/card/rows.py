"""What is measured on a card, in order of importance, and how long a row may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .sizes import Size

#: The names of the methods.
STAGES = {"stage 2": "domaingallery", "stage 1": "erasure"}
SAMPLING = "sampling"
AUTOMATIC = "automatic"
TASKS = (*STAGES, SAMPLING)
#: Evaluations of a model on one image in a step, roughly; what has a gradient counts three times. Without the
#: similarity term stage 2 has as many as stage 1.
EVALUATIONS = {"stage 2": 28, "stage 1": 7, SAMPLING: 2}
#: How many steps of a row are timed at most, and the seconds after which one has to do.
STEPS, LONG = 3, 20.0
#: How much longer a step takes, where none of its kind was measured yet, and the seconds of compiling.
FLOAT32, OFFLOADED, COMPILING = 6.0, 3.0, 60.0
#: A row begins where so many times what it should take is left.
MARGIN = 1.2


@dataclass(frozen=True, slots=True)
class Row:
    """Say what is measured.

    Attributes:
        base: the dtype of the weights.
        task: a stage, or sampling.
        checkpointing, offload: as in Domain Run Options.
    """

    model: str
    base: str
    task: str
    checkpointing: str = AUTOMATIC
    offload: str = AUTOMATIC
    compiled: bool = False

    @property
    def trains(self) -> bool:
        """Tell whether it is a stage of the training."""
        return self.task in STAGES

    def __str__(self) -> str:
        words = [self.model, self.base, self.task]
        if self.trains:
            words += [
                f"{name} {value}"
                for name, value in (("checkpointing", self.checkpointing), ("offload", self.offload))
                if value != AUTOMATIC
            ]
        return ", ".join(words + ["compiled"] * self.compiled)


@dataclass(slots=True)
class Result:
    """Hold what became of a row.

    Attributes:
        outcome: what stands in the table in place of figures; "" where there are some.
        failed: whether that is an error that nothing explains.
        values: the figures, by name.
        took: seconds of the whole row.
    """

    row: Row
    outcome: str = ""
    failed: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    took: float = 0.0


def ordered(sizes: Mapping[str, Size]) -> list[Row]:
    """Return all rows, the most important first."""
    settings = (("off", AUTOMATIC), ("on", AUTOMATIC), (AUTOMATIC, "on"))
    usual = [(name, size.bases[0]) for name, size in sizes.items()]
    others = [(name, base) for name, size in sizes.items() for base in size.bases[1:]]

    def every_way(bases: Sequence[tuple[str, str]], task: str) -> list[Row]:
        return [Row(*base, task, *setting) for base in bases for setting in settings]

    return [
        *(Row(*base, task) for base in usual for task in TASKS),
        *every_way(usual, "stage 2"),
        *(Row(*base, task) for base in others for task in TASKS),
        *every_way(usual, "stage 1"),
        *(Row(*base, task, compiled=True) for base in usual for task in (SAMPLING, "stage 1", "stage 2")),
        *(row for base in others for task in STAGES for row in every_way([base], task)),
    ]


def work(row: Row, sizes: Mapping[str, Size]) -> float:
    """Return how much a step is to compute, in what a device does at one pace."""
    size = sizes[row.model]
    images = size.batch if row.trains else 1
    slower = (FLOAT32 if row.base == "float32" else 1.0) * (OFFLOADED if row.offload == "on" else 1.0)
    alike = "stage 1" if row.task == "stage 2" and not size.similarity else row.task
    return size.work * images * EVALUATIONS[alike] * slower


def of_steps(row: Row, step: float) -> float:
    """Return the seconds of all steps of a row by those of one: of the dry run, a first one, the timed."""
    if row.trains:
        return 2.5 * step + min(STEPS * step, max(step, LONG))
    return 2.5 * step * (1 + STEPS + 2)  # without enhancement, and with half as much again


def predicted(row: Row, done: Sequence[Result], sizes: Mapping[str, Size]) -> float:
    """Return the seconds that a row should take, by those of its kind, or else by those that are most alike.

    Of the same model the slowest counts; of others the fastest, as large models keep a device busier. Before
    the first row nothing is known, and it begins.
    """

    def kind(other: Row) -> tuple[Any, ...]:
        return other.model, other.base == "float32", other.offload, other.compiled, other.task

    measured = [result for result in done if not result.outcome]
    if not measured:
        return 0.0
    likeness = range(len(kind(row)), 0, -1)
    known = next(
        (some for n in likeness if (some := [r for r in measured if kind(r.row)[:n] == kind(row)[:n]])), []
    )
    paces = [result.values["seconds"] / work(result.row, sizes) for result in known or measured]
    step = work(row, sizes) * (max(paces) if known else min(paces))
    beside = [r.took - of_steps(r.row, r.values["seconds"]) for r in known or measured]
    compiles = row.compiled and not any(result.row.compiled for result in known)
    return MARGIN * (of_steps(row, step) + max(0.0, *beside) + (COMPILING if compiles else 0.0))
