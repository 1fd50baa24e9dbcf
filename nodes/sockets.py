"""The pack's own socket types and the values that travel through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core.data.datasets import Examples
from ..domaingallery_core.plan import LossWeights, SimilarityScale

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """Hold what a training can vary besides its length and learning rate; the defaults are the paper's."""

    rank: int = 4
    alpha: float = 4.0
    batch_size: int = 4
    weights: LossWeights = field(default_factory=LossWeights)
    denoise_steps: int = 5
    offset_noise: float = 0.0
    adapter: str = "lora"
    targets: str = "attention"
    dropout: float = 0.0
    similarity_scale: SimilarityScale = "released"
    denoise_guidance: float = 1.0
    accumulation: int = 1
    schedule: str = "constant"
    warmup_steps: int = 0
    ema: float = 0.0
    min_snr: float = 0.0
    optimizer: str = "adamw"
    precision: str = "automatic"


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
