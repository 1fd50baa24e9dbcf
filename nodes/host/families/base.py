"""What training must know of a family of models; here, of one that nothing more is known of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....domaingallery_core.errors import InputError
from ....domaingallery_core.files.layers import LayerNames
from ....domaingallery_core.methods import METHODS
from ....domaingallery_core.trainables.adapters import TARGETS
from .names import DIFFUSION_MODEL, key_map, layer_names

#: Every family by its name; a class of a family is in it once it is defined.
FAMILIES: dict[str, Family] = {}

#: What a MODEL patches its network with, as the host keeps it in transformer_options.
Patches = dict[str, list[Callable[..., Any]]]
#: Evaluates the network with some patches in place of its own.
Evaluate = Callable[[Patches], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Say how a family draws best, where nobody says otherwise.

    Attributes:
        size: width and height of its images in pixels.
        origin: where these numbers come from.
    """

    size: int = 512
    steps: int = 25
    cfg: float = 7.5
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    origin: str


class Family:
    """Know a family of models.

    Attributes:
        name: what it is called.
        targets: named sets of layers that learn, as patterns of whole names; "attention" is what learns by
            default.
        drawing: how its source images are drawn by default.
        lengths: steps and learning rate by the name of a method, where they are not the method's own.
        guidance: what a network that reads a guidance scale is trained at; None for the host's own.
        text: the name of the layer that reads the text encoder; "" where it cannot be told.
        compares: whether it has features for Eq. 4.
        distilled: whether it is made for few steps, which training undoes in part.
    """

    name: ClassVar[str] = "plain"
    targets: ClassVar[Mapping[str, tuple[str, ...]]] = TARGETS
    drawing: ClassVar[Drawing] = Drawing(origin="the paper, but for the sampler")
    lengths: ClassVar[Mapping[str, tuple[int, float]]] = {}
    guidance: ClassVar[float | None] = None
    text: ClassVar[str] = ""
    compares: ClassVar[bool] = False
    distilled: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        FAMILIES[cls.name] = cls()

    def recognises(self, base: BaseModel) -> bool:
        """Tell whether a model is of this family."""
        return True

    def length(self, method: str) -> tuple[int, float]:
        """Return steps and learning rate of a method that suit the family."""
        own = METHODS[method]
        return self.lengths.get(method, (own.steps, own.learning_rate))

    def features(self, model: ModelPatcher, patches: Patches, evaluate: Evaluate) -> list[Tensor]:
        """Return what Eq. 4 compares, each B C H W, from one evaluation; nothing after them need be computed.

        Args:
            patches: those of the MODEL, which stay as they are.

        Raises:
            InputError: the family has none.
        """
        raise InputError(
            f"Expected a model with features for the similarity term, got a {type(model.model).__name__}. "
            "Set the similarity weight to 0 in Domain Training Options."
        )

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """Return the parts that are computed again one at a time in a backward pass.

        They are small enough to matter, and large enough to pay.
        """
        lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
        return [block for each in lists for block in each]

    def text_width(self, network: nn.Module) -> int | None:
        """Return the width of the prompts that a network reads; None where it cannot be told."""
        layer = dict(network.named_modules()).get(self.text) if self.text else None
        return layer.in_features if isinstance(layer, nn.Linear) else None

    def architecture(self, base: BaseModel) -> dict[str, str]:
        """Return what LoRA managers call such a model, by fields of a file's metadata; nothing if unknown.

        The words are those of ModelSpec (github.com/Stability-AI/ModelSpec) and of kohya's scripts.
        """
        return {}

    def names(self, base: BaseModel) -> LayerNames:
        """Return what files of every format call the layers of a model."""
        return layer_names(base, self.kohya_names(base))

    def kohya_names(self, base: BaseModel) -> dict[str, str]:
        """Return module -> name in kohya's format for every weight, as other programs spell it."""
        return self._spelled(base, original=True)

    def _spelled(self, base: BaseModel, *, original: bool) -> dict[str, str]:
        """Return names made of the model's own, or those of diffusers where there are any."""
        names: dict[str, str] = {}
        for name, key in key_map(base).items():
            key = key if isinstance(key, str) else key[0]
            if name.startswith("lora_unet_") and key.startswith(DIFFUSION_MODEL) and key.endswith(".weight"):
                module = key[len(DIFFUSION_MODEL) : -len(".weight")]
                own = name == f"lora_unet_{module.replace('.', '_')}"
                if module not in names or own == original:
                    names[module] = name
        return names


FAMILIES[Family.name] = Family()
