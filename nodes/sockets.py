"""The pack's own socket types and the values that travel through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core.data.datasets import Examples
from ..domaingallery_core.methods import METHODS
from ..domaingallery_core.run.plan import GROUPS, TrainingPlan
from ..domaingallery_core.settings import check_keys, settings_of
from ..domaingallery_core.trainables.adapter_settings import AdapterSettings

CATEGORY = "DomainGallery"

Prompts = io.Custom("DG_PROMPTS")
Dataset = io.Custom("DG_DATASET")
Source = io.Custom("DG_SOURCE")
Options = io.Custom("DG_OPTIONS")
Run = io.Custom("DG_RUN")

Conditioning = list[list[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DomainPrompts:
    """Hold the words of a domain and the prompts made of them, encoded by one text encoder.

    Attributes:
        more: the same for further categories of the domain.
    """

    identifier: str
    category: str
    target: Conditioning
    source: Conditioning
    bare: Conditioning
    empty: Conditioning
    more: tuple[DomainPrompts, ...] = ()

    def parts(self) -> tuple[DomainPrompts, ...]:
        """Return the prompts of each category of the domain."""
        return (self, *self.more)

    @property
    def target_text(self) -> str:
        return f"a {self.identifier} {self.category}"

    @property
    def source_text(self) -> str:
        return f"a {self.category}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceLatents:
    """Hold drawn images of a category as latents (N C H W, on the CPU), which take little memory.

    Attributes:
        vae: what turns them into images (N H W 3 in 0..1).
        size: height and width of the images.
    """

    latents: Tensor
    vae: Any
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentDataset:
    """Hold source and target images as the VAE encoded them, not yet scaled for a model.

    Attributes:
        validation: target images that are held out of the training.
        category: the word of the category; None where the dataset is not for particular prompts.
        vae: what encoded them, to look at what is drawn during a training.
        more: the same for further categories, or sizes, of the domain.
    """

    source: Examples
    target: Examples | None = None
    validation: Examples | None = None
    category: str | None = None
    vae: Any = None
    more: tuple[LatentDataset, ...] = ()

    def parts(self) -> tuple[LatentDataset, ...]:
        """Return one dataset for each category or size of the domain."""
        return (self, *self.more)


class TrainingOptions:
    """Hold what a training can vary besides its length and learning rate.

    Attributes:
        values: settings by name, all but those that the training nodes have; those that are not given are the
            paper's.
        weights: of loss terms, by name; those that are not given are their methods'.
    """

    def __init__(self, *, weights: Mapping[str, float] | None = None, **values: Any) -> None:
        known = {
            name: default
            for kind in (*GROUPS.values(), TrainingPlan)
            for name, (_, default) in settings_of(kind).items()
            if name not in ("steps", "learning_rate", "seed")
        }
        check_keys(values, known)
        self.values = known | values
        defaults = {name: w for method in METHODS.values() for name, w in method.weights.items()}
        self.weights = defaults | dict(weights or {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainingOptions) and vars(self) == vars(other)

    def adapter(self) -> AdapterSettings:
        """Return the shape of what is trained.

        Raises:
            InputError: a value cannot work.
        """
        return AdapterSettings(**{name: self.values[name] for name in settings_of(AdapterSettings)})

    def plan(
        self, method: str, steps: int, learning_rate: float, seed: int, **weights: float
    ) -> TrainingPlan:
        """Return the plan of a run of a method; `weights` are those that a node has itself.

        Raises:
            InputError: a value cannot work.
        """
        given = self.weights | weights
        weights = {name: given[name] for name in METHODS[method].weights}
        return TrainingPlan.of(
            method, steps=steps, learning_rate=learning_rate, seed=seed, weights=weights, **self.values
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Hold how a run is kept, watched and fitted into memory; the defaults are those without Run Options."""

    preview_every: int = 0
    preview_count: int = 2
    preview_steps: int = 20
    preview_cfg: float = 7.5
    validate_every: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    resume: bool = True
    run_name: str = ""
    gradient_checkpointing: str = "automatic"


class TrainedLora(dict[str, Tensor]):
    """Hold a LoRA as the host's LORA_MODEL, with what a file of it should say.

    Attributes:
        metadata: for the header of a safetensors file.
        kohya_names: module -> name without suffix in kohya's format, as the trained model has it.
    """

    def __init__(
        self, tensors: dict[str, Tensor], *, metadata: dict[str, str], kohya_names: dict[str, str]
    ) -> None:
        super().__init__(tensors)
        self.metadata = metadata
        self.kohya_names = kohya_names
