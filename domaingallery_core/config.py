"""Everything that decides a training run, as one frozen value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from .errors import InputError

Method = Literal["erasure", "domaingallery", "dreambooth"]
SimilarityScale = Literal["released", "paper"]
AdapterKind = Literal["lora", "dora", "loha", "lokr"]

#: The loss terms of each method besides "target", which no weight scales (Eq. 5).
TERMS: dict[str, tuple[str, ...]] = {
    "erasure": ("prior", "disentanglement", "erasure"),
    "domaingallery": ("prior", "disentanglement", "similarity"),
    "dreambooth": ("prior",),
}


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise InputError unless value is one of choices."""
    if value not in choices:
        raise InputError(
            f"Expected {name} to be one of {', '.join(map(str, choices))}, got {value!r}. Choose one."
        )


def check_number(
    name: str,
    value: Any,
    *,
    least: float,
    whole: bool = False,
    above: bool = False,
    most: float = math.inf,
) -> None:
    """Raise InputError unless value is a finite number of at least `least` (more than it if `above`)."""
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if (
        not right_type
        or not math.isfinite(value)
        or value < least
        or value > most
        or (above and value == least)
    ):
        kind = "a whole number" if whole else "a finite number"
        bound = f"more than {least:g}" if above else f"at least {least:g}"
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise InputError(f"Expected {name} to be {kind}, {bound}{limit}, got {value!r}. Change {name}.")


class Plan:
    """Turn a plan into plain values and back; an unknown key is an error."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as values that JSON can hold."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the plan that `to_dict` described.

        Raises:
            InputError: a key is unknown or a value cannot work.
        """
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise InputError(
                f"Expected a plan with the keys {sorted(known)}, got also {unknown!r}. Remove them."
            )
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights(Plan):
    """Weigh the terms of Eq. 5; a term with weight 0 is not computed at all."""

    prior: float = 1.0
    disentanglement: float = 10.0
    erasure: float = 10.0
    similarity: float = 1.0

    def __post_init__(self) -> None:
        for f in fields(self):
            check_number(f"the {f.name} weight", getattr(self, f.name), least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig(Plan):
    """Shape an adapter (paper App. A: LoRA, rank 4, alpha 4, attention projections).

    Attributes:
        kind: what `adapter_kinds` knows.
        targets: "attention", "attention+feedforward", "linear", or a regular expression for module names.
    """

    rank: int = 4
    alpha: float = 4.0
    targets: str = "attention"
    dropout: float = 0.0
    kind: AdapterKind = "lora"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(AdapterKind))
        check_number("rank", self.rank, least=1, whole=True)
        check_number("alpha", self.alpha, least=0, above=True)
        check_number("dropout", self.dropout, least=0, most=0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan(Plan):
    """Decide a training run; with the data and the base model it gives the same bytes again."""

    method: Method
    steps: int
    learning_rate: float
    batch_size: int = 4
    seed: int = 0
    rank: int = 4
    alpha: float = 4.0
    targets: str = "attention"
    dropout: float = 0.0
    adapter_kind: AdapterKind = "lora"
    weights: LossWeights = field(default_factory=LossWeights)
    offset_noise: float = 0.0
    denoise_steps: int = 5
    denoise_guidance: float = 1.0
    similarity_scale: SimilarityScale = "released"
    max_grad_norm: float = 1.0
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        if isinstance(self.weights, Mapping):
            object.__setattr__(self, "weights", LossWeights.from_dict(self.weights))
        check_choice("method", self.method, get_args(Method))
        check_choice("similarity_scale", self.similarity_scale, get_args(SimilarityScale))
        check_number("steps", self.steps, least=1, whole=True)
        check_number("learning_rate", self.learning_rate, least=0, above=True)
        check_number("batch_size", self.batch_size, least=1, whole=True)
        check_number("seed", self.seed, least=0, whole=True)
        check_number("offset_noise", self.offset_noise, least=0)
        check_number("denoise_steps", self.denoise_steps, least=1, whole=True)
        check_number("denoise_guidance", self.denoise_guidance, least=0)
        check_number("max_grad_norm", self.max_grad_norm, least=0, above=True)
        check_number("weight_decay", self.weight_decay, least=0)
        self.adapter()
        if self.uses("similarity") and self.batch_size < 3:
            raise InputError(
                f"Expected a batch size of at least 3 for the similarity term, got {self.batch_size!r}. "
                "It is about how images relate to several others. Raise batch_size or set its weight to 0."
            )
        if self.method == "erasure" and not any(map(self.uses, TERMS["erasure"])):
            raise InputError(
                "Expected a prior, disentanglement or erasure weight above 0, got 0 for all. Raise one."
            )

    def adapter(self) -> AdapterConfig:
        """Return the shape of the adapter that the run trains."""
        return AdapterConfig(
            rank=self.rank,
            alpha=self.alpha,
            targets=self.targets,
            dropout=self.dropout,
            kind=self.adapter_kind,
        )

    def uses(self, term: str) -> bool:
        """Tell whether a weighted term is part of the method and has a weight above 0."""
        return term in TERMS[self.method] and getattr(self.weights, term) > 0

    def needs_target(self) -> bool:
        """Tell whether the run reads target images."""
        return self.method != "erasure"

    def needs_source(self) -> bool:
        """Tell whether the run reads source images."""
        return any(map(self.uses, TERMS[self.method]))

    def needs_empty(self) -> bool:
        """Tell whether the run reads the empty prompt (guidance inside the recurrent denoising)."""
        return self.uses("similarity") and self.denoise_guidance != 1.0
