"""Everything that changes while a run goes on, and how it gets into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from ..generators import generator
from ..trainables.trainable import Trainable
from .checkpoints import Checkpoint
from .moving_average import MovingAverage
from .optimizers import averaged, make_optimizer
from .plan import TrainingPlan


class RunState:
    """Hold what a run has come to.

    Attributes:
        step: the last one done.
        noise: the stream of timesteps and noise.
        losses: the finite values of each term over the steps.
        validation: the validation loss, by step.
        previews: the latents of each preview (B C H W), by step.
        skipped: how many of the last steps in a row were not finite.
        skipped_in_all: how many steps were not finite.
        steps: how many the plan has.
        whole: False while a step changes the weights.
    """

    def __init__(self, trainable: Trainable, plan: TrainingPlan) -> None:
        self.parameters = trainable.named_parameters()
        weights = [*self.parameters.values()]
        self.device = weights[0].device
        self.settings = plan.optimizer
        self.optimizer = make_optimizer(weights, plan.optimizer)
        self.average = MovingAverage(self.parameters, plan.optimizer.ema)
        self.noise = generator(plan.seed, "noise")
        self.dropout = plan.dropout > 0
        self.steps = plan.optimizer.steps
        self.step = 0
        self.skipped = self.skipped_in_all = 0
        self.losses: dict[str, list[float]] = {}
        self.validation: dict[int, float] = {}
        self.previews: dict[int, Tensor] = {}
        self.whole = True
        self._streams = self._read_streams()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Return a context that changes the weights; a run that ends inside it must not be kept."""
        self.whole = False
        yield
        self.whole = True

    @contextmanager
    def learned(self) -> Iterator[None]:
        """Return a context in which the weights are those of a result: averaged, where the plan says so."""
        with averaged(self.optimizer, self.settings), self.average.applied():
            yield

    def done(self, step: int) -> None:
        """Note that a step is complete; a checkpoint made during the next one is of this moment."""
        self.step = step
        self._streams = self._read_streams()

    def back(self) -> None:
        """Go back to after the last complete step, from within one that has not changed the weights."""
        self._write_streams(self._streams)
        self.optimizer.zero_grad(set_to_none=True)

    def checkpoint(self, identity: dict[str, Any]) -> Checkpoint:
        """Return the run after its last complete step."""
        tensors: dict[str, Tensor] = {f"trained.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        tensors |= {f"stream.{name}": state for name, state in self._streams.items()}
        tensors |= {f"losses.{name}": _float64(values) for name, values in self.losses.items()}
        tensors |= {f"preview.{step}": latents for step, latents in self.previews.items()}
        numbers: dict[str, Any] = {
            "optimizer": {},
            "group": self._group(),
            "averaged": self.average.updates,
            "skipped": self.skipped,
            "skipped in all": self.skipped_in_all,
            "validation": self.validation,
        }
        for name, moments in zip(self.parameters, self._moments(), strict=True):
            for key, value in moments.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}/{key}"] = value
                else:
                    numbers["optimizer"][f"{name}/{key}"] = value
        return Checkpoint(self.step, identity, tensors, numbers)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of the same plan.

        Raises:
            FileError: it is not of such a run; the state is as before.
        """
        before = self.checkpoint({})
        tensors = {name: tensor.clone() for name, tensor in before.tensors.items()}
        try:
            if not 0 < checkpoint.step <= self.steps:
                raise ValueError(f"step {checkpoint.step} of {self.steps}")
            self._restore(checkpoint)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            self._restore(replace(before, tensors=tensors))
            raise FileError(f"Expected a checkpoint of this run, got another: {error}. Remove it.") from error

    def _restore(self, checkpoint: Checkpoint) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.tensors.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = tensor
        numbers = checkpoint.numbers
        with torch.no_grad():
            for kind, values in (("trained", self.parameters), ("average", self.average.values)):
                given = parts.get(kind, {})
                if given.keys() != values.keys():
                    raise ValueError(f"{len(given)} weights ({kind}) in place of {len(values)}")
                for name, value in values.items():
                    if given[name].shape != value.shape:
                        raise ValueError(f"{name} is {tuple(given[name].shape)} and not {tuple(value.shape)}")
                    value.copy_(given[name])
        self._restore_moments({**parts.get("optimizer", {}), **numbers["optimizer"]}, numbers["group"])
        self.average.updates = int(numbers["averaged"])
        self.skipped, self.skipped_in_all = int(numbers["skipped"]), int(numbers["skipped in all"])
        self.validation = {int(step): float(value) for step, value in numbers["validation"].items()}
        self.losses = {name: values.tolist() for name, values in parts.get("losses", {}).items()}
        previews = {int(step): latents for step, latents in parts.get("preview", {}).items()}
        self.previews = dict(sorted(previews.items()))
        self._write_streams(parts["stream"])
        self.done(checkpoint.step)

    def _moments(self) -> list[dict[str, Any]]:
        return [self.optimizer.state.get(weight, {}) for weight in self.parameters.values()]

    def _group(self) -> dict[str, Any]:
        """Return the numbers that an optimizer has of all weights together; Prodigy's rate is one."""
        (group,) = self.optimizer.param_groups
        return {key: value for key, value in group.items() if isinstance(value, int | float)}

    def _restore_moments(self, moments: dict[str, Any], numbers: dict[str, Any]) -> None:
        indices = {name: index for index, name in enumerate(self.parameters)}
        state: dict[int, dict[str, Any]] = {}
        for path, value in moments.items():
            name, _, key = path.rpartition("/")
            state.setdefault(indices[name], {})[key] = value
        shapes = [tuple(value.shape) for value in self.parameters.values()]
        kinds = {(shapes[index], frozenset(each)) for index, each in state.items()}
        if len(kinds) > len({shape for shape, _ in kinds}):  # small ones may have others
            raise ValueError("other moments for some weights than for others of their shape")
        (group,) = self.optimizer.state_dict()["param_groups"]
        whole = self._group().keys() <= numbers.keys()
        if not whole or not all(isinstance(value, int | float) for value in numbers.values()):
            raise ValueError("other numbers of the optimizer")
        self.optimizer.load_state_dict({"state": state, "param_groups": [group | numbers]})
        for index, weight in enumerate(self.parameters.values()):  # it makes them of the dtype of the weights
            loaded = self.optimizer.state.get(weight, {})
            for key, value in state.get(index, {}).items():
                if isinstance(value, Tensor) and value.dtype != loaded[key].dtype:
                    loaded[key] = value.to(loaded[key].device)

    def _read_streams(self) -> dict[str, Tensor]:
        streams = {"noise": self.noise.get_state()}
        if self.dropout:
            streams["cpu"] = torch.get_rng_state()
            if self.device.type == "cuda":
                streams["cuda"] = torch.cuda.get_rng_state(self.device)
        return streams

    def _write_streams(self, streams: dict[str, Tensor]) -> None:
        self.noise.set_state(streams["noise"])
        if "cpu" in streams:
            torch.set_rng_state(streams["cpu"])
        if "cuda" in streams and self.device.type == "cuda":
            torch.cuda.set_rng_state(streams["cuda"], self.device)


def _float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
