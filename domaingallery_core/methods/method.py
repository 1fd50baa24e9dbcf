"""What a method is: its terms, what they read, and its losses; and what of it can be set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ..data.parts import Images, Role
from ..errors import InputError
from ..model.denoiser import Denoiser
from ..settings import Settings, check_choice, check_keys, check_number, setting
from ..trainables.trainable import Trainable
from .evaluation import Ask
from .noising import Drawing, NoisedStep
from .similarity import SimilarityScale

#: Every method by its name; a class of a method is in it once it is defined.
METHODS: dict[str, Method] = {}

#: Terms by name, each computed when it is called.
Losses = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Name a term of a loss.

    Attributes:
        reads, role: which images it is about, and of what.
        weight: what scales it by default; None for one that nothing scales.
        times: another term, whose weight scales it as well, in place of one of its own.
        least_batch: with fewer images in a batch it says nothing.
        regresses: whether it is Eq. 1, which Min-SNR weighs.
        help: what a user reads about its weight.
    """

    name: str
    reads: Images
    role: Role = "domain"
    weight: float | None = 1.0
    times: tuple[str, ...] = ()
    least_batch: int = 1
    regresses: bool = False
    help: str = ""


class Method:
    """Say everything about a method.

    Attributes:
        name: what plans call it.
        title: what people call it; its name where none is given.
        terms: those of its loss.
        steps, learning_rate: those of its paper, for Stable Diffusion.
        trains: what is trained by default, a group of a plan: "adapter", "weights" or "tokens".
        shares_timestep: whether all images of a step have one timestep; otherwise each has its own.
        reads_others: whether a step reads further target images.
        decodes: whether it looks at pictures, and not at latents alone.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    terms: ClassVar[tuple[Term, ...]]
    steps: ClassVar[int]
    learning_rate: ClassVar[float]
    trains: ClassVar[str] = "adapter"
    shares_timestep: ClassVar[bool] = True
    reads_others: ClassVar[bool] = False
    decodes: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        METHODS[cls.name] = cls()

    @property
    def weights(self) -> dict[str, float]:
        """Return the default weight of each term that has one of its own."""
        return {t.name: t.weight for t in self.terms if t.weight is not None and not t.times}

    def losses(self, ask: Ask, noised: NoisedStep, settings: MethodSettings) -> Losses:
        """Ask for all predictions that the terms in use need, and return these terms, unweighted.

        What was asked for is evaluated together, when the first term is computed.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSettings(Settings):
    """Choose a method, and what can be set of the methods here.

    Attributes:
        name: a name in METHODS.
        weights: of its terms by name; those that are absent have their defaults. A term with weight 0 is not
            computed at all.
    """

    name: str
    weights: Mapping[str, float] = field(default_factory=dict)
    offset_noise: float = setting(
        0.0,
        "Helps with domains that are much lighter or darker than most images, such as pencil sketches: 0.1.",
        most=1.0, step=0.01,
    )  # fmt: skip
    min_snr: float = setting(
        0.0, "Gamma of Min-SNR weighting (arXiv 2303.09556) of the terms of Eq. 1, commonly 5. 0 for none.",
        most=100.0, step=0.1,
    )  # fmt: skip
    denoise_steps: int = setting(
        5, "Steps of the recurrent denoising inside the similarity term.", least=1, most=50
    )
    denoise_guidance: float = setting(
        1.0,
        "Guidance scale of the denoising inside the similarity term. 1 is none, the reference's; others "
        "double its work.",
        most=30.0, step=0.1,
    )  # fmt: skip
    similarity_scale: str = setting(
        "released",
        "How the similarity term is scaled. released: as the authors' code computes it. paper: as the paper "
        "prints it, about batch size minus 1 times as much.",
        choices=get_args(SimilarityScale),
    )

    def __post_init__(self) -> None:
        check_choice("method", self.name, METHODS)
        Settings.__post_init__(self)
        check_keys(self.weights, self.method.weights)
        weights = self.method.weights | dict(self.weights)
        for name, weight in weights.items():
            check_number(f"the {name} weight", weight, least=0)
        object.__setattr__(self, "weights", weights)
        if not any(self.uses(term.name) for term in self.method.terms):
            raise InputError(
                f"Expected a weight above 0 among {', '.join(weights)}, got 0 for all. Raise one."
            )

    @property
    def method(self) -> Method:
        """Return the method that is chosen."""
        return METHODS[self.name]

    @property
    def drawing(self) -> Drawing:
        """Return how a step is drawn."""
        method = self.method
        return Drawing(
            offset_noise=self.offset_noise,
            shared=method.shares_timestep,
            others=method.reads_others,
            min_snr=self.min_snr,
        )

    def weight(self, name: str) -> float:
        """Return what scales a term; 0 for one that is none of the method's."""
        term = next((term for term in self.method.terms if term.name == name), None)
        if term is None:
            return 0.0
        if not term.times:
            return 1.0 if term.weight is None else self.weights[name]
        found = 1.0
        for other in term.times:
            found *= self.weights[other]
        return found

    def terms(self, denoiser: Denoiser, trainable: Trainable, noised: NoisedStep) -> dict[str, Tensor]:
        """Return the unweighted terms of the method that have a weight."""
        losses = self.method.losses(Ask(denoiser, trainable), noised, self)
        return {name: loss() for name, loss in losses.items()}

    def total(self, losses: Mapping[str, Tensor], *, regression: float = 1.0) -> Tensor:
        """Return Eq. 5 or 7, the weighted sum of terms.

        Args:
            regression: scales the terms of Eq. 1.
        """
        regressing = {term.name for term in self.method.terms if term.regresses}
        return torch.stack(
            [
                (self.weight(name) * regression if name in regressing else self.weight(name)) * loss
                for name, loss in losses.items()
            ]
        ).sum()

    def uses(self, *names: str) -> bool:
        """Tell whether one of some terms is part of the method and has a weight above 0."""
        return any(self.weight(name) > 0 for name in names)

    def reads(self, images: Images, role: Role = "domain") -> bool:
        """Tell whether a run reads images of a kind, of the domain or of a subject."""
        return any((t.reads, t.role) == (images, role) and self.uses(t.name) for t in self.method.terms)

    def needs_empty(self) -> bool:
        """Tell whether a run reads the empty prompt (guidance inside the recurrent denoising)."""
        return self.uses("similarity") and self.denoise_guidance != 1.0
