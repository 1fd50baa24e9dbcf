"""Adapters of several models as one: of a network and of its text encoder, say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from ..errors import AdapterError
from .adapters import Adapter


class Adapters:
    """Be several adapters at once, which one switch turns off.

    The names of each begin with a prefix of its own, such as "text_encoders."; that of one may be "".
    """

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        """Take adapters, which stay whose they are, by prefix."""
        self.adapters = dict(adapters)

    @property
    def roots(self) -> tuple[nn.Module, ...]:
        """Return the modules that the adapters were put into."""
        return tuple(root for adapter in self.adapters.values() for root in adapter.roots)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained weights of all, in the order of the adapters."""
        return {
            f"{prefix}{name}": parameter
            for prefix, adapter in self.adapters.items()
            for name, parameter in adapter.named_parameters().items()
        }

    @contextmanager
    def off(self) -> Iterator[None]:
        """Return a context in which every model is its frozen base; may be nested."""
        with ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.off())
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states of all."""
        return {
            f"{prefix}{name}": tensor
            for prefix, adapter in self.adapters.items()
            for name, tensor in adapter.state_dict().items()
        }

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state of these adapters as loaders read it."""
        return {
            f"{prefix}{name}": tensor
            for prefix, own in self._split(state).items()
            for name, tensor in self.adapters[prefix].exported(own).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            AdapterError: it does not match; all adapters are unchanged.
        """
        with self._whole():
            for prefix, own in self._split(state).items():
                self.adapters[prefix].load(own)

    def begin_with(self, lora: Mapping[str, Tensor]) -> None:
        """Take over what loaders read of adapters; one that it has nothing for stays as it is.

        Raises:
            AdapterError: it does not match; all adapters are unchanged.
        """
        with self._whole():
            for prefix, own in self._split(lora).items():
                if own:
                    self.adapters[prefix].begin_with(own)

    def _split(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return what is of each adapter, without its prefix; a longer prefix comes before a shorter one."""
        longest, found = sorted(self.adapters, key=len, reverse=True), {name: {} for name in self.adapters}
        for name, tensor in state.items():
            prefix = next((prefix for prefix in longest if name.startswith(prefix)), longest[-1])
            found[prefix][name.removeprefix(prefix)] = tensor
        return found

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Return a context that changes all adapters or, where it ends in an error of theirs, none."""
        before = self._split(self.state_dict())
        try:
            yield
        except AdapterError:
            for prefix, own in before.items():
                self.adapters[prefix].load(own)
            raise
