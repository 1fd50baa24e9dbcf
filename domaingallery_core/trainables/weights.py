"""All weights of a model, or of several: copies learn beside a base that is never written to."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from ..errors import AdapterError, InputError, shown
from ..settings import Settings, setting

Copies = Literal["float32", "bfloat16"]
#: How loaders call a difference to a weight, to the bias beside it, and to anything else.
WEIGHT, BIAS = ".diff", ".diff_b"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSettings(Settings):
    """Say how the weights that learn are kept."""

    copies: str = setting(
        "float32",
        "What the weights that learn are kept in. bfloat16 takes half the memory, and loses steps that are "
        "small beside a weight.",
        choices=get_args(Copies),
    )


class Weights:
    """Hold a copy of each weight of a module that learns in its place; a context manager that ends that.

    The module has the copies while this is on and its own weights, which nothing writes to, otherwise.
    """

    def __init__(
        self, modules: nn.Module | Mapping[str, nn.Module], settings: WeightSettings | None = None
    ) -> None:
        """Put copies into a module, or several by what their names begin with; this changes nothing yet.

        Raises:
            InputError: a weight is quantised, or there is none.
        """
        self.modules = {"": modules} if isinstance(modules, nn.Module) else dict(modules)
        self.settings = settings or WeightSettings()
        self._places: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter, nn.Parameter]] = []
        self._names: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._off = 0
        with torch.inference_mode(False):
            self._copy()
        try:
            self._put(on=True)
        except BaseException:
            self._put(on=False)
            raise

    def _copy(self) -> None:
        copies: dict[int, nn.Parameter] = {}  # weights that are tied stay tied
        children = (
            (f"{prefix}{path}", child)
            for prefix, module in self.modules.items()
            for path, child in module.named_modules()
        )
        for path, child in children:
            for name, base in child._parameters.items():
                if base is None:
                    continue
                full = f"{path}.{name}" if path else name
                if id(base) not in copies:
                    dtype = _kept_in(full, base, self.settings.copies)
                    copies[id(base)] = nn.Parameter(base.detach().to(dtype, copy=True))
                copy = copies[id(base)]
                self._places.append((child._parameters, name, base, copy))
                self._names[full] = base, copy
        if not self._names:
            kinds = " and ".join(type(module).__name__ for module in self.modules.values())
            raise InputError(
                f"Expected a model with weights to train, got none in {kinds}. Connect another model."
            )

    def _put(self, *, on: bool) -> None:
        for owner, name, base, copy in self._places:
            owner[name] = copy if on else base

    @contextmanager
    def off(self) -> Iterator[None]:
        """Return a context in which the model is the frozen base; may be nested."""
        self._off += 1
        try:
            self._put(on=False)
            yield
        finally:
            self._off -= 1
            if not self._off:
                self._put(on=True)

    @property
    def roots(self) -> tuple[nn.Module, ...]:
        """Return the modules whose weights learn."""
        return tuple(self.modules.values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the copies by the names of the weights; of weights that are tied, the first."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for name, (_, copy) in self._names.items():
            found.setdefault(id(copy), (name, copy))
        return dict(found.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return on the CPU what each weight has learned: the difference to the base, in float32 at least."""
        with torch.inference_mode(False), torch.no_grad():
            return {name: _wide(copy) - _wide(base) for name, (base, copy) in self._names.items()}

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state as loaders of LoRAs read it: "<module>.diff" of a weight, ".diff_b" of its bias."""
        return {filed(name, state): difference for name, difference in state.items()}

    def imported(self, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state that `exported` described. What is of another model is left for `load` to name."""
        names = {filed(name, self._names): name for name in self._names}
        return {names.get(name, name): difference for name, difference in lora.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            AdapterError: names or shapes do not match; nothing is changed.
        """
        problems = [f"{name} is missing" for name in self._names if name not in state]
        problems += [f"{name} is not part of the model" for name in state if name not in self._names]
        problems += [
            f"{name} is {tuple(state[name].shape)} and not {tuple(copy.shape)}"
            for name, (_, copy) in self._names.items()
            if name in state and state[name].shape != copy.shape
        ]
        if problems:
            more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise AdapterError(
                f"Expected differences to the {len(self._names)} weights of this model, got others: "
                f"{'; '.join(problems[:3])}{more}. Use those that were trained on this model."
            )
        with torch.inference_mode(False), torch.no_grad():
            for name, (base, copy) in self._names.items():
                copy.copy_(_wide(base) + state[name])

    def remove(self) -> None:
        """Put the module's own weights back and forget the copies; a second call does nothing."""
        self._put(on=False)
        self._places, self._names = [], {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def filed(name: str, names: Container[str]) -> str:
    """Return what loaders call the difference to a weight, one of `names`."""
    module, _, leaf = name.rpartition(".")
    if leaf == "weight":
        return f"{module}{WEIGHT}"
    return f"{module}{BIAS}" if leaf == "bias" and f"{module}.weight" in names else f"{name}{WEIGHT}"


def _kept_in(name: str, weight: Tensor, copies: str) -> torch.dtype:
    """Return the dtype of the copy of a weight: that of the settings, or float64 for what is in float64.

    Raises:
        InputError: the weight is quantised.
    """
    plain = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()
    if not plain or weight.element_size() == 1:
        kind, dtype = type(weight).__name__, str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"Expected a model in float32, float16 or bfloat16 to train all its weights, got {shown(name)} "
            f"as a {kind} in {dtype}. Load the model without quantisation, or train a LoRA."
        )
    return torch.float64 if weight.dtype == torch.float64 else getattr(torch, copies)


def _wide(weight: Tensor) -> Tensor:
    """Return a weight on the CPU in float32, or float64."""
    return weight.detach().to(device="cpu", dtype=torch.promote_types(weight.dtype, torch.float32))


def bytes_beside_base(modules: Iterable[nn.Module], settings: WeightSettings, optimizer: str) -> int:
    """Return how much memory copies, gradients and moments of all weights of some modules take."""
    numbers = sum(weight.numel() for module in modules for weight in module.parameters())
    each = getattr(torch, settings.copies).itemsize
    moments = {"adamw8bit": 2, "adafactor": 0, "prodigy": 4 * each}.get(optimizer, 2 * each)
    return numbers * (2 * each + moments)
