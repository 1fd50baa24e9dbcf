"""peft adapters on a model that belongs to someone else: inject, switch off, read out, remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import AdapterError, shown
from .adapter_settings import AdapterSettings
from .fused import Switch, fused, switched
from .kinds import KINDS, Kind, describe, number
from .kinds.base import NAME
from .linear import as_linear, is_linear


def anywhere(*names: str) -> tuple[str, ...]:
    """Return patterns for layers of some names, in whatever they are."""
    return (*names, *(f"*.{name}" for name in names))


_ATTENTION = anywhere("attn[12].to_[qkv]", "attn[12].to_out.0")
Named = Mapping[str, tuple[str, ...]]
#: Named sets of layers, as patterns of whole names, those of Stable Diffusion's UNets.
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention+feedforward": (*_ATTENTION, *anywhere("ff.net.0.proj", "ff.net.2")),
    "linear": ("*",),
}
#: A text of patterns is at most so long.
LONGEST = 1000


def patterns(targets: str, named: Named = TARGETS) -> tuple[str, ...]:
    """Return the patterns that a text stands for: a name of some, or patterns with commas between them.

    Raises:
        AdapterError: there are none, or too many.
    """
    found = named.get(targets) or tuple(targets.replace(",", " ").split())
    if not found or len(targets) > LONGEST:
        raise AdapterError(
            f"Expected targets to be one of {', '.join(named)}, or patterns of layer names of at most "
            f"{LONGEST} characters, got {shown(targets)}. Write for example attn2.to_*."
        )
    return found


def target_modules(module: nn.Module, targets: str, named: Named = TARGETS) -> dict[str, nn.Linear]:
    """Return the Linear layers that `targets` selects.

    A pattern is for the whole name of a layer, or for what follows a dot in it; those of a named set are for
    whole names. `*` stands for any characters, `?` for one, `[12]` for one of some, as in names of files.

    Raises:
        AdapterError: no layer matches.
    """
    wanted = patterns(targets, named)
    if targets not in named:
        wanted = anywhere(*wanted)
    found = {
        name: child
        for name, child in module.named_modules()
        if name and is_linear(child) and any(fnmatchcase(name, each) for each in wanted)
    }
    if not found:
        raise AdapterError(
            f"Expected targets to select linear layers of {type(module).__name__}, got none for "
            f"{shown(targets)}. Use one of {', '.join(named)}, or patterns of layer names such as "
            "attn2.to_*."
        )
    return found


class Adapter:
    """Hold an adapter that peft put into a module; a context manager that removes it at the end.

    The base weights are neither copied nor changed. `remove` puts the very same modules back.
    """

    def __init__(self, module: nn.Module, config: AdapterSettings) -> None:
        self.module = module
        self.config = config
        self.kind: Kind = KINDS[config.kind](config)
        self._originals: list[tuple[nn.Module, str, nn.Module]] = []
        self._requires_grad: list[tuple[nn.Parameter, bool]] = []
        self._attributes: set[str] = set()
        self._layers: dict[str, Any] = {}
        self._switch = Switch()

    @classmethod
    def inject(
        cls,
        module: nn.Module,
        config: AdapterSettings,
        generator: torch.Generator,
        *,
        named: Named = TARGETS,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Put an adapter into a module, which changes nothing yet; what is random is from a CPU generator.

        Args:
            named: sets of layers that `config.targets` may name.
            dtype: that of the adapter's weights; other than float32 only for checks in float64.

        Raises:
            AdapterError: no layer matches, one is smaller than the rank, or an adapter is in place already.
        """
        if any(hasattr(child, "base_layer") for child in module.modules()):
            raise AdapterError(
                f"Expected {type(module).__name__} without an adapter, got one that has one already. "
                "Wait for the other training to end."
            )
        targets = target_modules(module, config.targets, named)
        for name, layer in targets.items():
            if config.rank > (most := min(layer.in_features, layer.out_features)):
                raise AdapterError(
                    f"Expected a rank of at most {most} for the layer {name!r}, got {config.rank!r}. "
                    f"Lower the rank or leave the layer out of the targets."
                )
        adapter = cls(module, config)
        try:
            with torch.inference_mode(False):
                adapter._inject(targets, generator, dtype)
        except BaseException:
            adapter.remove()
            raise
        return adapter

    def _inject(
        self, targets: Mapping[str, nn.Linear], generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        # peft takes seconds to import, so only a training pays for it.
        from peft import inject_adapter_in_model

        self._attributes = set(self.module.__dict__)
        self._requires_grad = [(p, p.requires_grad) for p in self.module.parameters()]
        for name, child in targets.items():
            parent, _, leaf = name.rpartition(".")
            owner = self.module.get_submodule(parent)
            self._originals.append((owner, leaf, child))
            owner._modules[leaf] = as_linear(child)
        config = self.kind.peft_config(targets)
        # On the meta device peft draws nothing from the global generator; the weights are made here.
        inject_adapter_in_model(config, self.module, adapter_name=NAME, low_cpu_mem_usage=True)
        for name, base in targets.items():
            layer: Any = self.module.get_submodule(name)
            self.kind.begin(layer, base, generator, dtype)
            plain = self.kind.is_plain()
            layer.forward = fused(layer, self._switch, NAME) if plain else switched(layer, self._switch)
            self._layers[name] = layer

    @contextmanager
    def off(self) -> Iterator[None]:
        """Return a context in which the model is the frozen base; may be nested."""
        self._switch.off += 1
        try:
            yield
        finally:
            self._switch.off -= 1

    @property
    def roots(self) -> tuple[nn.Module, ...]:
        """Return the module that the adapter was put into."""
        return (self.module,)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained weights under "<module>.<part>", such as "<module>.lora_A.weight"."""
        return {
            f"{name}.{part}": parameter
            for name, layer in self._layers.items()
            for part, parameter in self.kind.parameters(layer).items()
        }

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained weights, in a fixed order."""
        return list(self.named_parameters().values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return float32 copies on the CPU of the trained weights, and "<module>.alpha"."""
        with torch.inference_mode(False):
            state = {
                name: p.detach().to(device="cpu", dtype=torch.float32, copy=True)
                for name, p in self.named_parameters().items()
            }
            state |= {
                f"{name}.alpha": torch.tensor(self.kind.alpha(layer)) for name, layer in self._layers.items()
            }
        return state

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state of this adapter as loaders read it."""
        return self._converted(state, self.kind.exported)

    def imported(self, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state that `exported` described. What is of another model is left for `load` to name."""
        return self._converted(lora, self.kind.imported)

    def _converted(
        self,
        state: Mapping[str, Tensor],
        convert: Callable[[Mapping[str, Tensor], Tensor], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        found = dict(state)
        with torch.inference_mode(False), torch.no_grad():
            for name, layer in self._layers.items():
                known = (*self.kind.parts, *self.kind.filed)
                parts = {part: found.pop(f"{name}.{part}") for part in known if f"{name}.{part}" in found}
                changed = convert(parts, layer.get_base_layer().weight)
                found |= {f"{name}.{part}": tensor for part, tensor in changed.items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of an adapter of the same shape. A state without alphas has the scale 1.

        Raises:
            AdapterError: kind, names, shapes or scales do not match; the adapter is unchanged.
        """
        self._check_kind(state)
        parameters = self.named_parameters()
        given = {name: tensor for name, tensor in state.items() if not name.endswith(".alpha")}
        problems = [f"{name} is missing" for name in parameters if name not in given]
        problems += [f"{name} is not part of the model" for name in given if name not in parameters]
        for name, parameter in parameters.items():
            if name in given and given[name].shape != parameter.shape:
                problems.append(f"{name} is {tuple(given[name].shape)} and not {tuple(parameter.shape)}")
        for name, layer in self._layers.items():
            given_alpha, wanted = state.get(f"{name}.alpha"), self.kind.alpha(layer)
            alpha = self.config.rank if given_alpha is None else number(given_alpha)
            if abs(alpha - wanted) > 1e-6 * wanted:
                problems.append(f"{name}.alpha is {alpha:g} and not {wanted:g}")
        if not problems and (
            broken := [name for name, t in given.items() if not bool(torch.isfinite(t).all())]
        ):
            problems = [f"{name} holds values that are not finite" for name in broken]
        if problems:
            more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise AdapterError(
                f"Expected a {self.kind.title} for {len(self._layers)} layers of this "
                f"model with rank {self.config.rank} and alpha {self.config.alpha:g}, got one that differs: "
                f"{'; '.join(problems[:3])}{more}. "
                "Use a LoRA made for this model, with the same training options."
            )
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(given[name])

    def _check_kind(self, state: Mapping[str, Tensor]) -> None:
        kind = describe(state)[0]
        if kind != self.config.kind:
            raise AdapterError(
                f"Expected a {self.kind.title} to go on with, got a {KINDS[kind].title}. "
                f"Choose {kind!r} in Domain Training Options."
            )

    def begin_with(self, lora: Mapping[str, Tensor]) -> None:
        """Take over what loaders read of an adapter; layers that it does not have stay as they are.

        A LoRA or DoRA may have a lower rank, or another scale: what it adds to the model is the same.

        Raises:
            AdapterError: kind, names, or shapes do not match, or a rank is higher; the adapter is unchanged.
        """
        self._check_kind(lora)
        state, left = self.state_dict(), dict(lora)
        for name in self._layers:
            known = (*self.kind.parts, *self.kind.filed, "alpha")
            given = {part: left.pop(f"{name}.{part}") for part in known if f"{name}.{part}" in left}
            if given:
                fresh = {part: state.pop(f"{name}.{part}") for part in known if f"{name}.{part}" in state}
                fitted = self.kind.fitted(given, fresh)
                state |= {f"{name}.{part}": tensor for part, tensor in fitted.items()}
        self.load(self.imported(state | left))

    def remove(self) -> None:
        """Put the original modules back and forget the adapter; a second call does nothing."""
        for parent, leaf, original in self._originals:
            parent._modules[leaf] = original
        for parameter, required in self._requires_grad:
            if parameter.requires_grad != required:
                with torch.inference_mode(parameter.is_inference()):
                    parameter.requires_grad = required
        for name in set(self.module.__dict__) - self._attributes if self._attributes else ():
            del self.module.__dict__[name]
        for layer in self._layers.values():
            layer.__dict__.pop("forward", None)  # which holds the layer itself
        self._originals, self._requires_grad, self._attributes = [], [], set()
        self._layers = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _ordinary(tensor: Tensor) -> Tensor:
    """Return an ordinary tensor on the storage of an inference tensor."""
    raw = tensor.detach()
    if hasattr(raw, "__tensor_flatten__"):  # a quantised one, made of several
        names, made = raw.__tensor_flatten__()
        inner = {name: _ordinary(getattr(raw, name)) for name in names}
        return type(raw).__tensor_unflatten__(inner, made, raw.shape, raw.stride())
    if raw.element_size() == 1 and raw.is_floating_point():  # dlpack has no word for some 8-bit formats
        return torch.from_dlpack(raw.view(torch.uint8)).view(raw.dtype)
    return torch.from_dlpack(raw)


@contextmanager
def ordinary_weights(module: nn.Module) -> Iterator[None]:
    """Let autograd through weights that a loader made in inference mode, without copying them.

    Inside, each such parameter and buffer is an ordinary tensor on the same storage; the originals come back.
    """
    swapped: list[tuple[dict[str, Any], str, Tensor]] = []
    views: dict[int, Any] = {}  # weights that are tied stay tied
    try:
        with torch.inference_mode(False):
            for child in module.modules():
                stores: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)
                for tensors in stores:
                    for name, tensor in tensors.items():
                        if tensor is None or not tensor.is_inference():
                            continue
                        view: Any = views.get(id(tensor))
                        if view is None:
                            view = _ordinary(tensor)
                            if isinstance(tensor, nn.Parameter):
                                view = nn.Parameter(view, requires_grad=False)
                            views[id(tensor)] = view
                        # Noted before the swap, so that an interrupt between the two undoes it.
                        swapped.append((tensors, name, tensor))
                        tensors[name] = view
        yield
    finally:
        for tensors, name, tensor in swapped:
            tensors[name] = tensor
