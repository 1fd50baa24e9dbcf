"""Everything that decides a training run, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from ..data.parts import DataSettings
from ..errors import InputError
from ..methods import MethodSettings
from ..settings import Settings, check_keys, setting
from ..trainables.adapter_settings import AdapterSettings
from .optimizers import OptimizerSettings

Precision = Literal["automatic", "float32", "bfloat16"]

GROUPS: dict[str, type[Settings]] = {
    "method": MethodSettings,
    "data": DataSettings,
    "adapter": AdapterSettings,
    "optimizer": OptimizerSettings,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan(Settings):
    """Decide a training run; with the data and the base model it gives the same bytes again.

    Attributes:
        method: what is learned from what, and the weights of its terms.
        data: how images are read.
        adapter: what is trained.
        optimizer: how it moves, and for how many steps.
        seed: of everything that is random.
    """

    method: MethodSettings
    data: DataSettings
    adapter: AdapterSettings
    optimizer: OptimizerSettings
    seed: int = setting(0)
    precision: str = setting(
        "automatic",
        "What the model computes in. automatic: as when drawing, but never float16: bfloat16 where the "
        "device has it, else float32. The LoRA itself is always float32.",
        choices=get_args(Precision),
    )

    def __post_init__(self) -> None:
        for name, kind in GROUPS.items():
            if isinstance(given := getattr(self, name), Mapping):
                object.__setattr__(self, name, kind.from_dict(given))
        Settings.__post_init__(self)
        for term in self.method.method.terms:
            if self.method.uses(term.name) and self.data.batch_size < term.least_batch:
                raise InputError(
                    f"Expected a batch size of at least {term.least_batch} for the {term.name} term, got "
                    f"{self.data.batch_size!r}. It is about how images relate to several others. Raise "
                    "batch_size or set its weight to 0."
                )

    @classmethod
    def of(cls, method: str, **values: Any) -> Self:
        """Return the plan of a method, with settings by their names, in whichever group they are.

        Raises:
            InputError: there is no such setting, or its value cannot work.
        """
        values = {"name": method} | values
        check_keys(values, [name for place in places().values() for name in place])
        given = {
            group: {name: values[name] for name in names if name in values}
            for group, names in places().items()
        }
        own = given.pop("")
        return cls(**{group: GROUPS[group](**settings) for group, settings in given.items()}, **own)


def places() -> dict[str, list[str]]:
    """Return the names of the settings of each group, and under "" of those in none."""
    found = {group: [f.name for f in fields(kind)] for group, kind in GROUPS.items()}  # type: ignore[arg-type]
    return found | {"": [f.name for f in fields(TrainingPlan) if f.name not in GROUPS]}
