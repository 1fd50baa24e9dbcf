"""What a run trains on a MODEL, and what becomes of it: an adapter, all weights, or a new word."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...domaingallery_core.data.parts import Part
from ...domaingallery_core.files.formats.comfyui import Comfyui
from ...domaingallery_core.generators import generator
from ...domaingallery_core.methods.textual_inversion import TEMPLATES
from ...domaingallery_core.model.denoiser import Condition
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.trainables.adapters import Adapter
from ...domaingallery_core.trainables.kinds import KINDS
from ...domaingallery_core.trainables.tokens import Tokens
from ...domaingallery_core.trainables.trainable import Trainable
from ...domaingallery_core.trainables.weights import Weights, bytes_beside_base
from ..host.families import family_of
from ..host.memory import casting
from ..host.model import HostDenoiser
from ..host.new_words import NewWord, first_vectors, learning_words

log = logging.getLogger("domaingallery")


class Trained:
    """Put what learns on a MODEL that is loaded for training, and say what a result of it is."""

    def beside(self) -> Iterable[ModelPatcher]:
        """Return what is loaded beside the MODEL."""
        return ()

    def put(
        self, stack: ExitStack, denoiser: HostDenoiser, parts: list[Part], plan: TrainingPlan
    ) -> tuple[Trainable, list[Part]]:
        """Return what learns, which the stack takes off again, and the parts with the prompts that it has."""
        raise NotImplementedError

    def result(self, trainable: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state of what learned as other nodes read it."""
        return Comfyui().to_file(trainable.exported(state))


class TrainedAdapter(Trained):
    """An adapter, which may begin as that of an earlier training."""

    def __init__(self, start: Mapping[str, Tensor] | None = None) -> None:
        self.start = start

    def put(
        self, stack: ExitStack, denoiser: HostDenoiser, parts: list[Part], plan: TrainingPlan
    ) -> tuple[Trainable, list[Part]]:
        model = denoiser.model
        seed, named = generator(plan.seed, "adapter"), family_of(model).targets
        assert plan.adapter is not None
        adapter = Adapter.inject(model.model.diffusion_model, plan.adapter, seed, named=named)
        stack.enter_context(adapter)
        if self.start is not None:
            adapter.load(adapter.imported(self.start))
        return adapter, parts


class TrainedWeights(Trained):
    """All weights of the network, as differences to those of the MODEL."""

    def put(
        self, stack: ExitStack, denoiser: HostDenoiser, parts: list[Part], plan: TrainingPlan
    ) -> tuple[Trainable, list[Part]]:
        model = denoiser.model
        network = model.model.diffusion_model
        assert plan.weights is not None
        warn_of_memory(model, bytes_beside_base(network, plan.weights, plan.optimizer.optimizer))
        weights = stack.enter_context(Weights(network, plan.weights))
        stack.enter_context(casting(network))
        return weights, parts


class TrainedWord(Trained):
    """The vectors of a new word, read by the text encoder of the MODEL."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip

    def beside(self) -> Iterable[ModelPatcher]:
        return (self.clip.patcher,)

    def put(
        self, stack: ExitStack, denoiser: HostDenoiser, parts: list[Part], plan: TrainingPlan
    ) -> tuple[Trainable, list[Part]]:
        clip, settings = self.clip, plan.tokens
        assert settings is not None
        stack.enter_context(learning_words(clip))
        first = first_vectors(clip, settings.word, settings.vectors)
        device, roots = denoiser.model.load_device, (clip.cond_stage_model, denoiser.model.model)
        tokens = Tokens({name: vectors.to(device) for name, vectors in first.items()}, roots)
        new, templates = NewWord(clip, tokens, settings.word), TEMPLATES[settings.templates]
        return tokens, [learned_under(part, new, denoiser, templates) for part in parts]

    def result(self, trainable: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)


def kind_metadata(plan: TrainingPlan) -> dict[str, str]:
    """Return what a file says of its kind, in kohya's words."""
    if plan.adapter is not None:
        return {
            **KINDS[plan.adapter.kind].metadata(),
            "ss_network_dim": str(plan.adapter.rank),
            "ss_network_alpha": f"{plan.adapter.alpha:g}",
        }
    if plan.weights is not None:
        return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "full"})}
    return {}


def learned_under(part: Part, word: NewWord, denoiser: HostDenoiser, templates: Sequence[str]) -> Part:
    """Return a part whose images are learned under templates of a new word; the first is also looked at."""
    like = (part.target or part.source).latents[:1]  # type: ignore[union-attr]

    def caption(template: str) -> Any:
        def now() -> Condition:
            return denoiser.conditions([word.encode(template)], like)[0]

        return now

    captions = tuple(map(caption, templates))
    return replace(part, prompts=replace(part.prompts, target=captions[0], captions=captions))


def warn_of_memory(model: ModelPatcher, needed: int) -> None:
    """Say how much memory a training of all weights takes, and warn where there is less."""
    free = comfy.model_management.get_free_memory(model.load_device)
    text = f"All weights, their gradients and moments take {needed / 2**30:.2g} GB beside the model"
    if needed > free:
        log.warning(
            "%s; %.2g GB are free. If that fails, set optimizer to adamw8bit in Training Options, copies to "
            "bfloat16, or train a LoRA.", text, free / 2**30,
        )  # fmt: skip
    else:
        log.info("%s.", text)
