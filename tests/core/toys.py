"""Small models for tests of the core, with the layer names of the host's UNets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from domaingallery_core.data.examples import Examples
from domaingallery_core.data.parts import Part
from domaingallery_core.files.layers import LayerNames, Place
from domaingallery_core.files.lora import core_names
from domaingallery_core.files.writing import read_tensors
from domaingallery_core.generators import generator
from domaingallery_core.methods import Method, MethodSettings, NoisedBatch
from domaingallery_core.methods.terms import PRIOR, TARGET
from domaingallery_core.model.denoiser import Condition, Conditions
from domaingallery_core.model.process import Process, broadcast
from domaingallery_core.run.plan import GROUPS, TrainingPlan, places
from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.adapters import Adapter

CHANNELS, SIZE, WIDTH = 2, 4, 8
LAYERS = 8  # that an adapter is put on: two attentions of four


class Plain(Method):
    """Eq. 1 on target images and on source images, and nothing else."""

    name = "plain"
    terms = (TARGET, PRIOR)
    steps, learning_rate = 10, 1e-2

    def losses(self, ask, noised, settings):
        domain = noised["domain"]
        terms = {"target": ask(domain.target, domain.prompts.target).reconstruction}
        if settings.uses("prior"):
            terms["prior"] = ask(domain.source, domain.prompts.source).reconstruction
        return terms


class Attention(nn.Module):
    """Attend with the names to_q, to_k, to_v and to_out.0."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        out = nn.functional.scaled_dot_product_attention(self.to_q(x), self.to_k(context), self.to_v(context))
        return self.to_out(out)


class Network(nn.Module):
    """Predict noise from pixels (B C H W), a noise level (B) and a context (B L D)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Linear(CHANNELS, WIDTH)
        self.attn1 = Attention(WIDTH)
        self.attn2 = Attention(WIDTH)
        self.proj_out = nn.Linear(WIDTH, CHANNELS)
        self.register_buffer("shift", torch.full((1,), 0.1))

    def down(self, x: Tensor, level: Tensor, context: Tensor) -> list[Tensor]:
        h = self.proj_in(x.flatten(2).mT) + level[:, None, None] + self.shift  # B C H W -> B (H W) D
        first = h
        h = h + self.attn1(h, h)
        h = h + self.attn2(h, context)
        return [first, h]

    def forward(self, x: Tensor, level: Tensor, context: Tensor) -> Tensor:
        h = self.down(x, level, context)[-1]
        return self.proj_out(h).mT.reshape(x.shape)


class ToyDenoiser:
    """Put a Network behind the core's protocol and count what is asked of it."""

    def __init__(self, network: Network, kind: str = "epsilon") -> None:
        self.network = network
        self.process = Process.scaled_linear(kind)  # type: ignore[arg-type]
        self.rows: list[int] = []
        self.with_gradient: list[bool] = []
        self.of_features = 0

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.rows.append(x.shape[0])
        self.with_gradient.append(torch.is_grad_enabled())
        s = broadcast(sigma, x)
        out = self.network(x / (1 + s**2).sqrt(), sigma.log() / 4, condition.tensors["context"])
        if self.process.kind == "v":
            return x / (1 + s**2) - out * s / (1 + s**2).sqrt()
        return x - out * s

    def features(self, x: Tensor, sigma: Tensor, condition: Condition) -> list[Tensor]:
        self.of_features += 1
        s = broadcast(sigma, x)
        found = self.network.down(x / (1 + s**2).sqrt(), sigma.log() / 4, condition.tensors["context"])
        return [f.mT.reshape(f.shape[0], WIDTH, SIZE, SIZE) for f in found]


def network(seed: int = 0) -> Network:
    """Return a frozen random network, the same for the same seed, without touching the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network().eval().requires_grad_(False)


def random(*shape: int, seed: int) -> Tensor:
    """Return normal noise from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions() -> Conditions:
    """Return three random prompts of length 3."""
    target, source, empty = (Condition({"context": random(1, 3, WIDTH, seed=seed)}) for seed in (11, 12, 13))
    return Conditions(target=target, source=source, empty=empty)


def latents(count: int, seed: int) -> Tensor:
    """Return random latents N C H W."""
    return random(count, CHANNELS, SIZE, SIZE, seed=seed)


def part(target: Any = None, source: Any = None, **others: Any) -> Part:
    """Return a part of images (Examples, or latents N C H W) with three random prompts."""
    images = {"target": target, "source": source, "validation": others.pop("validation", None)}
    examples = {k: Examples(v) if isinstance(v, Tensor) else v for k, v in images.items()}
    return Part(**{"name": "images", "prompts": conditions()} | others | examples)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return what a Network reads, for two images."""
    return random(2, CHANNELS, SIZE, SIZE, seed=1), torch.zeros(2), random(2, 3, WIDTH, seed=2)


def inject(module: nn.Module, config: AdapterSettings | None = None, seed: int = 0) -> Adapter:
    """Put an adapter into a module."""
    return Adapter.inject(module, config or AdapterSettings(), generator(seed, "adapter"))


def filled(adapter: Adapter, seed: int = 5) -> Adapter:
    """Give both halves of an adapter random weights."""
    state = adapter.state_dict()
    adapter.load(
        {k: v if k.endswith("alpha") else 0.3 * random(*v.shape, seed=seed) for k, v in state.items()}
    )
    return adapter


def snapshot(module: nn.Module) -> tuple[Any, ...]:
    """Return everything that a removal must bring back, by identity."""
    return (
        [(name, id(child)) for name, child in module.named_modules()],
        [(name, id(p), p.requires_grad) for name, p in module.named_parameters()],
        [(name, id(b)) for name, b in module.named_buffers()],
        sorted(module.__dict__),
        [child.training for child in module.modules()],
    )


def plan(method: str, **changes: Any) -> TrainingPlan:
    """Return a plan of one step; weights of terms that are not the method's are left out."""
    own = MethodSettings(name=method).weights
    weights = {name: weight for name, weight in changes.pop("weights", {}).items() if name in own}
    return TrainingPlan.of(method, **{"steps": 1, "learning_rate": 1e-2, "weights": weights} | changes)


def names_of(*diffusers: tuple[str, Place], **kohya: str) -> LayerNames:
    """Return what files call layers: names of diffusers with their places, and module -> name in kohya's."""
    places = {name: Place(module) for module, name in kohya.items()} | dict(diffusers)
    modules = dict.fromkeys([*kohya, *(place.module for _, place in diffusers)])
    own = {f"diffusion_model.{module}": Place(module) for module in modules}
    pieces = {
        module: tuple(name for name, place in diffusers if place.module == module) for module in modules
    }
    return LayerNames(kohya, {module: names for module, names in pieces.items() if names}, places | own)


def load_lora(path: Path, names: LayerNames | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a LoRA file under the core's names, and its metadata."""
    tensors, metadata = read_tensors(path)
    return core_names(tensors, names)[0], metadata


def but(plan: TrainingPlan, **values: Any) -> TrainingPlan:
    """Return a plan with some settings changed, by their names as `TrainingPlan.of` takes them."""
    flat = {name: value for group in GROUPS for name, value in asdict(getattr(plan, group)).items()}
    flat |= {name: getattr(plan, name) for name in places()[""]} | values
    return TrainingPlan.of(flat.pop("name"), **flat)


def terms(
    denoiser: ToyDenoiser, adapter: Adapter, plan: TrainingPlan, domain: NoisedBatch, **others: NoisedBatch
) -> dict[str, Tensor]:
    """Return the terms of a plan's method on the domain, and on what has other roles."""
    return plan.method.terms(denoiser, adapter, {"domain": domain, **others})


def assert_same_gradients(
    found: Tensor, expected: Tensor, adapter: Adapter, *, rtol: float = 1e-2, atol: float = 1e-6
) -> None:
    """Compare the gradients of two losses; both graphs are kept."""
    a, b = (torch.autograd.grad(loss, adapter.parameters(), retain_graph=True) for loss in (found, expected))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
