"""The pack's own socket types and the values that travel through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core.config import AdapterKind, LossWeights, SimilarityScale

CATEGORY = "DomainGallery"

Prompts = io.Custom("DG_PROMPTS")
Dataset = io.Custom("DG_DATASET")
Options = io.Custom("DG_OPTIONS")

Conditioning = list[list[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DomainPrompts:
    """Hold the words of a domain and the prompts made of them, encoded by one text encoder."""

    identifier: str
    category: str
    target: Conditioning
    source: Conditioning
    bare: Conditioning
    empty: Conditioning

    @property
    def target_text(self) -> str:
        return f"a {self.identifier} {self.category}"

    @property
    def source_text(self) -> str:
        return f"a {self.category}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentDataset:
    """Hold source and target images as the VAE encoded them, N C H W, not yet scaled for a model."""

    source: Tensor
    target: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """Hold what a training can vary besides its length and learning rate; the defaults are the paper's."""

    rank: int = 4
    alpha: float = 4.0
    batch_size: int = 4
    weights: LossWeights = field(default_factory=LossWeights)
    denoise_steps: int = 5
    offset_noise: float = 0.0
    adapter: AdapterKind = "lora"
    targets: str = "attention"
    dropout: float = 0.0
    similarity_scale: SimilarityScale = "released"
    denoise_guidance: float = 1.0


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
