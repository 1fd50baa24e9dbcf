"""A LoRA on the text encoder beside that of the network: it is frozen unless one is connected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ...domaingallery_core.data.parts import Part
from ...domaingallery_core.files.formats.comfyui import TEXT
from ...domaingallery_core.files.layers import LayerNames
from ...domaingallery_core.generators import generator
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.trainables.adapters import Adapter, target_modules
from ...domaingallery_core.trainables.together import Adapters
from ...domaingallery_core.trainables.trainable import Trainable
from ..host.model import HostDenoiser
from ..host.network.casting import cast_anew
from ..host.new_words import learning_text
from ..host.text_encoder import TARGETS, key_map, text_names
from ..sockets import DomainPrompts
from .trained import TrainedAdapter, encoded_anew


class TrainedAdapters(TrainedAdapter):
    """An adapter of the network and one of its text encoder, which encodes the prompts anew in each step."""

    def __init__(self, clip: Any, prompts: DomainPrompts, start: Mapping[str, Tensor] | None = None) -> None:
        """Take the text encoder, the words of the parts, and what to begin with.

        Raises:
            InputError: it is no text encoder of Stable Diffusion or SDXL.
        """
        super().__init__(start)
        self.clip, self.prompts, self._names = clip, prompts, text_names(clip)

    def beside(self) -> Iterable[ModelPatcher]:
        return (self.clip.patcher,)

    def loads(self) -> dict[str, Any]:
        return key_map(self.clip)

    def names(self) -> LayerNames:
        return self._names

    def metadata(self, plan: TrainingPlan) -> dict[str, str]:
        rate = plan.optimizer.text_encoder_rate or plan.optimizer.learning_rate
        return {"ss_text_encoder_lr": f"{rate:g}"}

    def put(
        self, stack: ExitStack, denoiser: HostDenoiser, parts: list[Part], plan: TrainingPlan
    ) -> tuple[Trainable, list[Part]]:
        network, parts = TrainedAdapter().put(stack, denoiser, parts, plan)
        encoder, seed = self.clip.cond_stage_model, generator(plan.seed, "text encoder")
        assert isinstance(network, Adapter) and plan.adapter is not None
        config = replace(plan.adapter, targets=targets_of(plan.adapter.targets))
        text = stack.enter_context(Adapter.inject(encoder, config, seed, named=TARGETS))
        stack.enter_context(cast_anew(encoder, torch.float32))
        stack.enter_context(learning_text(self.clip))
        both = Adapters({"": network, TEXT: text})
        if self.start is not None:
            both.begin_with(self.start)
        return both, [encoded_anew(part, self.clip, self.prompts, denoiser) for part in parts]


def trained_adapter(
    clip: Any, prompts: DomainPrompts, start: Mapping[str, Tensor] | None = None
) -> TrainedAdapter:
    """Return an adapter of the network, and of its text encoder if one is given.

    Raises:
        InputError: it is no text encoder of Stable Diffusion or SDXL.
    """
    return TrainedAdapter(start) if clip is None else TrainedAdapters(clip, prompts, start)


def targets_of(targets: str) -> str:
    """Return which layers of a text encoder learn: patterns are for those of the network."""
    return targets if targets in TARGETS else "attention"


def learning_layers(clip: Any, targets: str) -> list[str]:
    """Return the layers of a text encoder that learn, as the core calls them beside those of the network."""
    return [f"{TEXT}{name}" for name in target_modules(clip.cond_stage_model, targets_of(targets), TARGETS)]


def text_encoder_input() -> io.Input:
    """Return the input for a text encoder that gets a LoRA as well."""
    return io.Clip.Input(
        "text_encoder",
        optional=True,
        tooltip="The text encoder of the model, if a LoRA is to learn on it as well: the one of Domain "
        "Prompts. Without it, it stays as it is.",
    )
