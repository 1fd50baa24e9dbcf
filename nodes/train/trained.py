"""What a run trains on a MODEL, and what becomes of it: an adapter, all weights, or a new word."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...domaingallery_core.data.parts import Part
from ...domaingallery_core.files.formats.comfyui import TEXT, Comfyui
from ...domaingallery_core.files.layers import LayerNames
from ...domaingallery_core.generators import generator
from ...domaingallery_core.methods.textual_inversion import TEMPLATES
from ...domaingallery_core.model.denoiser import Conditions, Prompt
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.trainables.adapters import Adapter
from ...domaingallery_core.trainables.tokens import Tokens
from ...domaingallery_core.trainables.trainable import Trainable
from ...domaingallery_core.trainables.weights import Weights, bytes_beside_base
from ..host.families import family_of
from ..host.model import HostDenoiser
from ..host.network.memory import casts_weights
from ..host.new_words import NewWord, encoded, first_vectors, learning_text
from ..host.text_encoder import key_map
from ..sockets import DomainPrompts

log = logging.getLogger("domaingallery")


class Trained:
    """Put what learns on a MODEL that is loaded for training, and say what a result of it is.

    Attributes:
        said: what is shown of it before the first step.
    """

    said = ""

    def beside(self) -> Iterable[ModelPatcher]:
        """Return what is loaded beside the MODEL."""
        return ()

    def loads(self) -> dict[str, Any]:
        """Return what the host's loaders know of the names in a file besides those of the MODEL."""
        return {}

    def names(self) -> LayerNames:
        """Return what files call layers that learn besides those of the MODEL."""
        return LayerNames({}, {}, {})

    def metadata(self, plan: TrainingPlan) -> dict[str, str]:
        """Return what a file says of what learned besides the MODEL."""
        return {}

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
            adapter.begin_with(self.start)
        return adapter, parts


class TrainedWeights(Trained):
    """All weights of the network, and of its text encoder if there is one, as differences to their own.

    Args:
        prompts: the words of the parts, which are encoded anew in each step where the text encoder learns.
    """

    def __init__(self, clip: Any = None, prompts: DomainPrompts | None = None) -> None:
        self.clip, self.prompts = clip, prompts

    def beside(self) -> Iterable[ModelPatcher]:
        return () if self.clip is None else (self.clip.patcher,)

    def loads(self) -> dict[str, Any]:
        return {} if self.clip is None else key_map(self.clip)

    def put(
        self, stack: ExitStack, denoiser: HostDenoiser, parts: list[Part], plan: TrainingPlan
    ) -> tuple[Trainable, list[Part]]:
        model = denoiser.model
        modules: dict[str, nn.Module] = {"": model.model.diffusion_model}
        if self.clip is not None:
            modules[TEXT] = self.clip.cond_stage_model
        assert plan.weights is not None
        needed = bytes_beside_base(modules.values(), plan.weights, plan.optimizer.optimizer)
        self.said = told_of_memory(model, needed)
        weights = stack.enter_context(Weights(modules, plan.weights))
        for module in modules.values():
            stack.enter_context(casts_weights(module))
        if self.clip is not None:
            stack.enter_context(learning_text(self.clip))
            assert self.prompts is not None
            parts = [encoded_anew(part, self.clip, self.prompts, denoiser) for part in parts]
        return weights, parts

    def result(self, trainable: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # What a text encoder has besides learns nothing, and the loaders of LoRAs know no name for it.
        learned = {n: t for n, t in state.items() if not n.startswith(TEXT) or bool(t.any())}
        return super().result(trainable, learned)


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
        stack.enter_context(learning_text(clip))
        first = first_vectors(clip, settings.word, settings.vectors)
        device, roots = denoiser.model.load_device, (clip.cond_stage_model, denoiser.model.model)
        tokens = Tokens({name: vectors.to(device) for name, vectors in first.items()}, roots)
        new, templates = NewWord(clip, tokens, settings.word), TEMPLATES[settings.templates]
        return tokens, [learned_under(part, new, denoiser, templates) for part in parts]

    def result(self, trainable: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)


def encoded_anew(part: Part, clip: Any, prompts: DomainPrompts, denoiser: HostDenoiser) -> Part:
    """Return a part whose prompts a text encoder that learns encodes whenever they are looked at."""
    names = {f"{words.identifier} {words.category}": words for words in prompts.categories}
    words = next(w for name, w in names.items() if f"{part.name}, ".startswith(f"{name}, "))

    def prompt(text: str) -> Prompt:
        return lambda: denoiser.conditions([encoded(clip, text)], like(part))[0]

    conditions = Conditions(
        target=prompt(words.target_text), source=prompt(words.source_text), empty=prompt("")
    )
    return replace(part, prompts=conditions)


def learned_under(part: Part, word: NewWord, denoiser: HostDenoiser, templates: Sequence[str]) -> Part:
    """Return a part whose images are learned under templates of a new word; the first is also looked at."""

    def caption(template: str) -> Prompt:
        return lambda: denoiser.conditions([word.encode(template)], like(part))[0]

    captions = tuple(map(caption, templates))
    return replace(part, prompts=replace(part.prompts, target=captions[0], captions=captions))


def like(part: Part) -> Tensor:
    """Return a latent (1 C H W) of the size of a part."""
    examples = part.target or part.source
    assert examples is not None
    return examples.latents[:1]


def told_of_memory(model: ModelPatcher, needed: int) -> str:
    """Return how much memory a training of all weights takes, and warn where there is less."""
    free = comfy.model_management.get_free_memory(model.load_device)
    text = f"All weights, their gradients and moments take {needed / 2**30:.2g} GB beside the model"
    if needed > free:
        log.warning(
            "%s; %.2g GB are free. If that fails, set optimizer to adamw8bit in Domain Training Options, "
            "copies to bfloat16, or train a LoRA.", text, free / 2**30,
        )  # fmt: skip
    return f"{text}."
