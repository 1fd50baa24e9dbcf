"""A training of a UNet with random weights by the pack's own code, for what measures it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.random_model import random_model
from tools.host.load_pack import load_pack

#: The words of the part that is trained on.
WORDS = {"identifier": "sks", "category": "face"}


class Pack:
    """The pack, loaded into this process as the host loads it."""

    def __init__(self, host: Path) -> None:
        self.name = load_pack(host).__name__

    def __getitem__(self, name: str) -> Any:
        """Return a module of the pack by name, such as "nodes.host.model"."""
        return sys.modules[f"{self.name}.{name}"]


@dataclass(frozen=True, slots=True)
class Training:
    """Hold what a training of a random model reads.

    Attributes:
        model: the MODEL.
        prompts, dataset: what a training node is given.
        latents: source images (N C H W).
    """

    pack: Pack
    model: Any
    prompts: Any
    dataset: Any
    latents: Tensor

    @classmethod
    def of(cls, pack: Pack, width: int, size: int, batch: int, dtype: str | None = None) -> Training:
        """Make random weights in a dtype, and images and prompts for a batch."""
        model = random_model(width, dtype and getattr(torch, dtype))
        sockets, examples = pack["nodes.sockets"], pack["domaingallery_core.data.examples"].Examples
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2 * batch, 4, size, size, generator=generator)
        images = sockets.LatentPart(source=examples(latents), target=examples(latents[:batch] * 0.9))
        category = sockets.CategoryPrompts(
            **WORDS,
            **{name: [[torch.randn(1, 77, 768, generator=generator), {}]]
               for name in ("target", "source", "bare", "empty")},
        )  # fmt: skip
        dataset = sockets.LatentDataset((images,))
        return cls(pack, model, sockets.DomainPrompts((category,)), dataset, latents)

    def plan(self, method: str, steps: int) -> Any:
        """Return the plan that a training node would make with its own values."""
        batch = len(self.latents) // 2
        return self.pack["nodes.sockets"].TrainingOptions(batch_size=batch).plan(method, steps, 1e-4, 0)

    @contextmanager
    def ready(self, plan: Any, checkpointing: str) -> Iterator[Any]:
        """Give a Denoiser, an adapter, the parts and the device of a MODEL made ready for a plan."""
        host, memory = self.pack["nodes.host.model"], self.pack["nodes.host.network.memory"]
        data, adapters = self.pack["nodes.train.data"], self.pack["domaingallery_core.trainables.adapters"]
        draws = plan.dropout > 0
        with (
            torch.inference_mode(),
            host.training(self.model) as device,
            memory.precision(self.model, plan.precision),
            memory.gradient_checkpointing(self.model, checkpointing, draws=draws),
        ):
            denoiser = host.HostDenoiser(self.model)
            pairs = {"domain": data.with_prompts(self.prompts, self.dataset)}
            parts = data.training_parts(self.model, denoiser, pairs, plan)
            seed, network = torch.Generator().manual_seed(0), self.model.model.diffusion_model
            with adapters.Adapter.inject(network, plan.adapter, seed) as adapter:
                yield denoiser, adapter, parts, device


class Recorded:
    """Be a Denoiser that notes what it is asked for."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.process = denoiser, denoiser.process
        self.calls: list[tuple[str, Tensor, Tensor, Any, bool]] = []

    def _note(self, kind: str, x: Tensor, sigma: Tensor, condition: Any) -> None:
        latents = x.detach().clone().requires_grad_(x.requires_grad)
        self.calls.append((kind, latents, sigma, condition, torch.is_grad_enabled()))

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        self._note("__call__", x, sigma, condition)
        return self.denoiser(x, sigma, condition)

    def features(self, x: Tensor, sigma: Tensor, condition: Any) -> list[Tensor]:
        self._note("features", x, sigma, condition)
        return self.denoiser.features(x, sigma, condition)

    def taken(self) -> list[tuple[str, Tensor, Tensor, Any, bool]]:
        """Return what was noted since it was last taken."""
        found, self.calls = self.calls, []
        return found

    def again(self, calls: list[tuple[str, Tensor, Tensor, Any, bool]]) -> None:
        """Evaluate what was noted once more, then what has a gradient backwards, the last first."""
        outputs: list[list[Tensor]] = []
        for kind, x, sigma, condition, gradient in calls:
            with torch.set_grad_enabled(gradient):
                found = getattr(self.denoiser, kind)(
                    x.detach().requires_grad_(x.requires_grad), sigma, condition
                )
            found = [found] if isinstance(found, Tensor) else found
            if moving := [tensor for tensor in found if tensor.requires_grad]:
                outputs.append(moving)
        while outputs:
            last = outputs.pop()
            torch.autograd.backward(last, [torch.ones_like(tensor) for tensor in last])


@contextmanager
def bare(network: nn.Module) -> Iterator[None]:
    """Return a context in which a network has its own layers in place of the adapted ones.

    What goes into the first of these has a gradient, so that a backward pass goes as far as it goes for them.
    """
    adapted = [(name, layer) for name, layer in network.named_modules() if hasattr(layer, "base_layer")]
    owners = [
        (network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name, _ in adapted
    ]
    for (owner, leaf), (_, layer) in zip(owners, adapted, strict=True):
        owner._modules[leaf] = layer.base_layer
    first = adapted[0][1].base_layer.register_forward_pre_hook(_with_gradient)
    try:
        yield
    finally:
        first.remove()
        for (owner, leaf), (_, layer) in zip(owners, adapted, strict=True):
            owner._modules[leaf] = layer


def _with_gradient(_layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    [x] = given
    if x.requires_grad or not torch.is_grad_enabled():
        return None
    return (x.detach().requires_grad_(),)
