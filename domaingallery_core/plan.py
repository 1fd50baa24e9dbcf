"""Everything that decides a training run, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from .errors import InputError
from .settings import Settings, check_choice, check_number
from .trainables.kinds import AdapterConfig

Method = Literal["erasure", "domaingallery", "dreambooth", "personalization"]
SimilarityScale = Literal["released", "paper"]
Optimizer = Literal["adamw", "adamw8bit"]
Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["automatic", "float32", "bfloat16"]

#: The terms of Eq. 7 that read images of a subject and of its category.
SUBJECT_TERMS = ("subject", "subject_prior")
#: The loss terms of each method besides "target", which no weight scales (Eq. 5, 7).
TERMS: dict[str, tuple[str, ...]] = {
    "erasure": ("prior", "disentanglement", "erasure"),
    "domaingallery": ("prior", "disentanglement", "similarity"),
    "dreambooth": ("prior",),
    "personalization": ("prior", "disentanglement", "similarity", *SUBJECT_TERMS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights(Settings):
    """Weigh the terms of Eq. 5 and 7; a term with weight 0 is not computed at all."""

    prior: float = 1.0
    disentanglement: float = 10.0
    erasure: float = 10.0
    similarity: float = 1.0
    subject: float = 1.0

    @property
    def subject_prior(self) -> float:
        """Return the weight of the prior term of a subject, lambda_subject lambda_prior (Eq. 7)."""
        return self.subject * self.prior

    def __post_init__(self) -> None:
        for f in fields(self):
            check_number(f"the {f.name} weight", getattr(self, f.name), least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan(Settings):
    """Decide a training run; with the data and the base model it gives the same bytes again.

    Attributes:
        accumulation: batches whose gradients make one step.
        schedule: how the learning rate goes down after `warmup_steps` in which it rises.
        ema: decay of the moving average that replaces the weights in the result; 0 for none.
        min_snr: gamma of Min-SNR weighting (arXiv 2303.09556) of the terms of Eq. 1; 0 for none.
        precision: what the base computes in; "automatic" is bfloat16 where the device has it.
    """

    method: Method
    steps: int
    learning_rate: float
    batch_size: int = 4
    seed: int = 0
    rank: int = 4
    alpha: float = 4.0
    targets: str = "attention"
    dropout: float = 0.0
    adapter_kind: str = "lora"
    weights: LossWeights = field(default_factory=LossWeights)
    offset_noise: float = 0.0
    denoise_steps: int = 5
    denoise_guidance: float = 1.0
    similarity_scale: SimilarityScale = "released"
    max_grad_norm: float = 1.0
    weight_decay: float = 1e-2
    optimizer: Optimizer = "adamw"
    accumulation: int = 1
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    ema: float = 0.0
    min_snr: float = 0.0
    precision: Precision = "automatic"

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
        check_choice("optimizer", self.optimizer, get_args(Optimizer))
        check_number("accumulation", self.accumulation, least=1, whole=True)
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_number("warmup_steps", self.warmup_steps, least=0, whole=True, most=self.steps)
        check_number("ema", self.ema, least=0, most=0.99999)
        check_number("min_snr", self.min_snr, least=0)
        check_choice("precision", self.precision, get_args(Precision))
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
        return any(self.uses(term) for term in TERMS[self.method] if term not in SUBJECT_TERMS)

    def reads(self) -> dict[str, bool]:
        """Tell which images the run reads, by the words of `Dataset.restricted`."""
        return {
            "target": self.needs_target(),
            "source": self.needs_source(),
            "subject": self.uses("subject"),
            "subject_source": self.uses("subject_prior"),
        }

    def needs_empty(self) -> bool:
        """Tell whether the run reads the empty prompt (guidance inside the recurrent denoising)."""
        return self.uses("similarity") and self.denoise_guidance != 1.0
