"""New tokens: the vectors that stand for a word in text encoders, which stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..settings import Settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings(Settings):
    """Say what the tokens begin with, and in which captions they learn."""

    word: str = setting(
        "",
        "A common word of one token that comes near what is taught: the vectors begin as that of this word. "
        "Empty: the category.",
    )
    vectors: int = setting(
        1, "Tokens that learn. More can learn more, and are harder to prompt.", least=1, most=32
    )
    templates: str = setting(
        "object",
        "Captions that the images are learned under. object: a photo of it, and the like. style: a painting "
        "in the style of it, and the like.",
        choices=("object", "style"),
    )


class Tokens:
    """Hold the vectors (K D) of new tokens, for each text encoder of a model that reads its own.

    Whoever makes a prompt of them reads `vectors` anew each time; nothing of a model changes.
    """

    def __init__(self, first: Mapping[str, Tensor], roots: Sequence[nn.Module] = ()) -> None:
        """Begin with vectors (K D) by the name of their encoder; `roots` are the modules that read them."""
        self.roots = tuple(roots)
        self._off = 0
        with torch.inference_mode(False):
            self._first = {name: vectors.detach().float().clone() for name, vectors in first.items()}
            self._learned = {name: nn.Parameter(vectors.clone()) for name, vectors in self._first.items()}

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """Return the vectors (K D) as they are now, or as they began where this is off."""
        return self._first if self._off else self._learned

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the vectors by the name of their encoder."""
        return dict(self._learned)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Return a context in which the tokens are what they began with; may be nested."""
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the vectors on the CPU."""
        with torch.inference_mode(False):
            return {name: vectors.detach().to("cpu", copy=True) for name, vectors in self._learned.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            AdapterError: they are of other encoders, or of another number; nothing is changed.
        """
        expected, given = (
            {name: tuple(vectors.shape) for name, vectors in each.items()} for each in (self._learned, state)
        )
        if expected != given:
            raise AdapterError(
                f"Expected vectors {expected!r}, got {given!r}. Use those that were trained for this model."
            )
        with torch.inference_mode(False), torch.no_grad():
            for name, vectors in self._learned.items():
                vectors.copy_(state[name])
