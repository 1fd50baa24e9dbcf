"""The pack's own socket types and the values that travel through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core.data.examples import Examples
from ..domaingallery_core.files.layers import LayerNames
from ..domaingallery_core.methods import METHODS
from ..domaingallery_core.run.plan import GROUPS, TrainingPlan, places
from ..domaingallery_core.settings import Settings, check_keys, setting, settings_of
from ..domaingallery_core.trainables.adapter_settings import AdapterSettings
from .presets import PAPER, PRESETS, Preset

CATEGORY = "DomainGallery"

Prompts = io.Custom("DG_PROMPTS")
Dataset = io.Custom("DG_DATASET")
Source = io.Custom("DG_SOURCE")
Options = io.Custom("DG_OPTIONS")
Run = io.Custom("DG_RUN")
Embedding = io.Custom("DG_EMBEDDING")

#: What a run does with its checkpoints, when blocks are computed again in the backward pass, and when their
#: weights are in system memory.
RESUME = ("automatic", "start over")
CHECKPOINTING = ("automatic", "on", "off")
OFFLOAD = ("automatic", "on", "off")

Conditioning = list[list[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CategoryPrompts:
    """Hold the words of a category of a domain and the prompts made of them."""

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


@dataclass(frozen=True, slots=True, eq=False)
class DomainPrompts:
    """Hold the prompts of each category of a domain, encoded by one text encoder."""

    categories: tuple[CategoryPrompts, ...]

    @property
    def first(self) -> CategoryPrompts:
        """Return the prompts of the first category, which is the only one of most domains."""
        return self.categories[0]

    @property
    def words(self) -> list[str]:
        """Return the nouns."""
        return [part.category for part in self.categories]


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
class LatentPart:
    """Hold images of a category, all of one size, as the VAE encoded them, not yet scaled for a model.

    Attributes:
        validation: target images that are held out of the training.
        category: the word of the category; None where the dataset is not for particular prompts.
    """

    source: Examples
    target: Examples | None = None
    validation: Examples | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LatentDataset:
    """Hold the images of each category, or size, of a domain.

    Attributes:
        vae: what encoded them, to look at what is drawn during a training.
    """

    parts: tuple[LatentPart, ...]
    vae: Any = None


class TrainingOptions:
    """Hold what a training can vary besides its length and learning rate.

    Attributes:
        values: settings by name, all but those that the training nodes have; those that are not given are the
            paper's.
        weights: of loss terms, by name; those that are not given are their methods'.
        preset: what else is left open goes by it.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, float] | None = None,
        preset: Preset = PRESETS[PAPER],
        **values: Any,
    ) -> None:
        self.preset = preset
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
        self,
        method: str,
        steps: int,
        learning_rate: float,
        seed: int,
        *,
        own: Mapping[str, Any] | None = None,
        **weights: float,
    ) -> TrainingPlan:
        """Return the plan of a run of a method; `weights` are those that a node has itself.

        Args:
            own: further settings that a node has itself.

        Raises:
            InputError: a value cannot work.
        """
        given = self.weights | weights
        weights = {name: given[name] for name in METHODS[method].weights}
        known = {name for group in places(METHODS[method].trains).values() for name in group}
        values = {name: value for name, value in self.values.items() if name in known} | dict(own or {})
        return TrainingPlan.of(
            method, steps=steps, learning_rate=learning_rate, seed=seed, weights=weights, **values
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(Settings):
    """Hold how a run is kept, watched and fitted into memory."""

    preview_every: int = setting(
        100,
        "Draw with the LoRA every so many steps, from fixed noise, beginning with the base model. "
        "0 for never.",
        most=100_000,
    )
    preview_count: int = setting(2, "Pictures in each preview.", least=1, most=16)
    preview_steps: int = setting(20, "Sampling steps of a preview (DDIM). Few are quick.", least=1, most=200)
    preview_cfg: float = setting(7.5, "Guidance scale of a preview.", most=100.0, step=0.1, digits=2)
    validate_every: int = setting(
        0,
        "Read the loss on fixed images, noise levels and noise every so many steps. Unlike the loss of a "
        "step it compares between steps and runs. 0 for never.",
        most=100_000,
    )
    checkpoint_every: int = setting(
        0,
        "Keep the run every so many steps, in output/domaingallery/checkpoints, also when it is done. With 0 "
        "it is kept every few minutes and when it ends early, and removed when it is done.",
        most=100_000,
    )
    keep: int = setting(2, "How many checkpoints remain, the newest.", least=1, most=1000)
    resume: str = setting(
        RESUME[0],
        "automatic: a run that was stopped goes on where it was, to the same LoRA, when the same is run "
        "again. start over: its checkpoints are replaced.",
        choices=RESUME,
    )
    run_name: str = setting(
        "",
        "A folder for the checkpoints. Empty: a name made of the prompt and of all that decides the run. "
        "A folder with the checkpoints of another run is refused.",
    )
    gradient_checkpointing: str = setting(
        CHECKPOINTING[0],
        "Compute blocks again in the backward pass: much less memory, up to a third more time, the same "
        "LoRA. automatic: as few blocks as the free memory asks for, by a trial before the first step.",
        choices=CHECKPOINTING,
    )
    offload: str = setting(
        OFFLOAD[0],
        "Keep the weights of blocks in system memory, and move each to the device while it is computed with, "
        "for models larger than the device's memory: slower, the same LoRA. automatic: as few blocks as do "
        "not fit.",
        choices=OFFLOAD,
    )


#: Those of a run to which no Domain Run Options are connected.
UNWATCHED = RunOptions(preview_every=0)


class TrainedLora(dict[str, Tensor]):
    """Hold a LoRA as the host's LORA_MODEL, with what a file of it should say.

    Attributes:
        metadata: for the header of a safetensors file.
        names: what files call the layers of the model.
        loads: what the host's loaders know of such a model: name in a file -> where it leads.
        state: what was trained, under the core's names; of a DoRA the host's loaders read something else.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        metadata: dict[str, str],
        names: LayerNames,
        loads: Mapping[str, Any],
        state: Mapping[str, Tensor],
    ) -> None:
        super().__init__(tensors)
        self.metadata = metadata
        self.names, self.loads, self.state = names, loads, state


class TrainedEmbedding(dict[str, Tensor]):
    """Hold the vectors (K D) of a new word by text encoder, and what a file of them should say."""

    def __init__(self, vectors: Mapping[str, Tensor], *, metadata: dict[str, str]) -> None:
        super().__init__(vectors)
        self.metadata = metadata
