"""Everything that decides a training run, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from ..data.parts import DataSettings
from ..errors import InputError
from ..methods import METHODS, MethodSettings
from ..settings import Settings, check_keys, setting
from ..trainables.adapter_settings import AdapterSettings
from ..trainables.tokens import TokenSettings
from ..trainables.weights import WeightSettings
from .optimizers import OptimizerSettings

Precision = Literal["automatic", "float32", "bfloat16"]

#: What can be trained; a plan has the settings of one of these.
TRAINED: dict[str, type[Settings]] = {
    "adapter": AdapterSettings,
    "weights": WeightSettings,
    "tokens": TokenSettings,
}


def groups(trains: str) -> dict[str, type[Settings]]:
    """Return the groups of a plan that trains one of TRAINED."""
    return {
        "method": MethodSettings,
        "data": DataSettings,
        trains: TRAINED[trains],
        "optimizer": OptimizerSettings,
    }


#: Those of a plan that trains an adapter.
GROUPS = groups("adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan(Settings):
    """Decide a training run; with the data and the base model it gives the same bytes again.

    Attributes:
        method: what is learned from what, and the weights of its terms.
        data: how images are read.
        adapter, weights, tokens: what is trained, one of these.
        optimizer: how it moves, and for how many steps.
        seed: of everything that is random.
    """

    method: MethodSettings
    data: DataSettings
    adapter: AdapterSettings | None = None
    weights: WeightSettings | None = None
    tokens: TokenSettings | None = None
    optimizer: OptimizerSettings
    seed: int = setting(0)
    precision: str = setting(
        "automatic",
        "What the model computes in. automatic: as when drawing, but never float16: bfloat16 where the "
        "device has it, else float32. The LoRA itself is always float32.",
        choices=get_args(Precision),
    )

    def __post_init__(self) -> None:
        for name, kind in (GROUPS | TRAINED).items():
            if isinstance(given := getattr(self, name), Mapping):
                object.__setattr__(self, name, kind.from_dict(given))
        if len(trained := [name for name in TRAINED if getattr(self, name) is not None]) != 1:
            raise InputError(
                f"Expected a plan that trains one of {', '.join(TRAINED)}, got "
                f"{' and '.join(trained) or 'none'}. Give the settings of one."
            )
        Settings.__post_init__(self)
        for term in self.method.method.terms:
            if self.method.uses(term.name) and self.data.batch_size < term.least_batch:
                raise InputError(
                    f"Expected a batch size of at least {term.least_batch} for the {term.name} term, got "
                    f"{self.data.batch_size!r}. It is about how images relate to several others. Raise "
                    "batch_size or set its weight to 0."
                )

    @classmethod
    def of(cls, method: str, *, trains: str | None = None, **values: Any) -> Self:
        """Return the plan of a method, with settings by their names, in whichever group they are.

        Args:
            trains: a name in TRAINED; without it what the method trains by default.

        Raises:
            InputError: there is no such setting, or its value cannot work.
        """
        if trains is None:
            trains = METHODS[method].trains if method in METHODS else "adapter"
        found, values = places(trains), {"name": method} | values
        check_keys(values, [name for place in found.values() for name in place])
        given = {
            group: {name: values[name] for name in names if name in values} for group, names in found.items()
        }
        own, kinds = given.pop(""), groups(trains)
        return cls(**{group: kinds[group](**settings) for group, settings in given.items()}, **own)

    @property
    def trains(self) -> str:
        """Return what is trained, a name in TRAINED."""
        return next(name for name in TRAINED if getattr(self, name) is not None)

    @property
    def dropout(self) -> float:
        """Return the share of what is trained that is left out at random."""
        return 0.0 if self.adapter is None else self.adapter.dropout

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as values that JSON can hold; groups that it has not are absent."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def places(trains: str = "adapter") -> dict[str, list[str]]:
    """Return the names of the settings of each group of a plan, and under "" of those in none."""
    kinds = groups(trains)
    found = {group: [f.name for f in fields(kind)] for group, kind in kinds.items()}  # type: ignore[arg-type]
    return found | {"": [f.name for f in fields(TrainingPlan) if f.name not in GROUPS | TRAINED]}
