"""What transformers have in common. Their features for Eq. 4 are what the first half of the blocks makes.

The down path of a UNet is the half in which an image is taken in; docs/families.md says more of the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .base import Drawing, Evaluate, Family, Patches

#: What the layers of attention are under, and those of the feed-forward part.
ATTENTION = (
    "attn", "attn1", "attn2", "self_attn", "cross_attn", "img_attn", "txt_attn",
    "attention", "self_attention", "cross_attention",
)  # fmt: skip
FEEDFORWARD = ("mlp", "img_mlp", "txt_mlp", "mlpX", "mlpC", "ffn", "feed_forward", "ff_i", "ff_t")


def _targets(stacks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the named sets of layers of blocks in lists of some names."""

    def under(parts: Sequence[str]) -> list[str]:
        return [f"{stack}.*.{part}.*" for stack in stacks for part in parts]

    # The single blocks of Flux have attention and more in one layer.
    attention = (*under(ATTENTION), "single_blocks.*.linear[12]")
    return {
        "attention": attention,
        "attention+feedforward": (*attention, *under(FEEDFORWARD)),
        "linear": ("*",),
    }


class Transformer(Family):
    """A transformer of any kind.

    Attributes:
        models: names of the host's classes of such models.
        stacks: names of its lists of blocks, in order; of an unknown one, all that it has.
        image: which of several things that a block gives is the image's.
        patch: how many latents a token of the image is wide.
        spec: what LoRA managers call it, and its implementation; None where they have no words for it.
    """

    name = "transformer"
    compares = True
    targets = _targets(["*"])
    drawing = Drawing(
        size=1024, steps=25, cfg=4.0, sampler="euler", scheduler="simple",
        origin="what most flow models take; not measured",
    )  # fmt: skip
    models: ClassVar[tuple[str, ...]] = ()
    stacks: ClassVar[tuple[str, ...]] = ()
    image: ClassVar[int] = 0
    patch: ClassVar[int] = 2
    spec: ClassVar[tuple[str, str] | None] = None

    def __init_subclass__(cls) -> None:
        if "stacks" in vars(cls):
            cls.targets = _targets(cls.stacks)
        super().__init_subclass__()

    def recognises(self, base: BaseModel) -> bool:
        if not self.models:
            return (
                not isinstance(base.diffusion_model, UNetModel) and len(self.blocks(base.diffusion_model)) > 0
            )
        return type(base).__name__ in self.models

    def architecture(self, base: BaseModel) -> dict[str, str]:
        if self.spec is None:
            return {}
        name, implementation = self.spec
        return {"modelspec.architecture": f"{name}/lora", "modelspec.implementation": implementation}

    def read(self, network: nn.Module) -> list[nn.Module]:
        """Return the blocks that Eq. 4 reads, in order: the first half (docs/families.md has other choices).

        Of a network that treats image and text apart at first, no more than that part is read.
        """
        blocks = self.blocks(network)
        first = getattr(network, self.stacks[0]) if self.stacks else blocks
        return list(first)[: max(1, len(blocks) // 2)]

    def features(self, model: ModelPatcher, patches: Patches, evaluate: Evaluate) -> list[Tensor]:
        """Return the tokens of the image after each block that is read (B D tokens 1)."""
        network = model.model.diffusion_model
        read = self.read(network)
        found: list[Tensor] = []
        size: list[int] = []

        def measure(network: nn.Module, given: tuple[Tensor, ...]) -> None:
            size[:] = [math.ceil(side / self.patch) for side in given[0].shape[-2:]]

        def collect(block: nn.Module, given: Any, output: Any) -> None:
            tokens = output[self.image] if isinstance(output, (tuple, list)) else output
            tokens = tokens.flatten(1, -2)[:, -math.prod(size) :]  # a text in the same stream is before them
            found.append(tokens.mT[..., None])
            if len(found) == len(read):
                _stop()

        hooks = [network.register_forward_pre_hook(measure)]
        hooks += [block.register_forward_hook(collect) for block in read]
        try:
            evaluate(patches)
        except _Halfway:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found


class _Halfway(Exception):
    """Raised after the last block whose features are read."""


def _stop() -> NoReturn:
    raise _Halfway
