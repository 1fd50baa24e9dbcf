"""Run a node on hostile values, and tell how it ended."""

from __future__ import annotations

import json
import re
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from tests.nodes.faults.scenario import Vae
from tests.nodes.fuzz.values import HOSTILE, Made, tensor
from tests.nodes.tiny import conditioning, tiny_dataset, tiny_latents, tiny_model, tiny_prompts

#: An input may take so many seconds, and so many bytes more than any before it.
SECONDS, BYTES = 20, 400 * 2**20
#: Valid values of inputs that decide how long a node works.
SMALL = {
    "steps": 2, "count": 3, "width": 64, "height": 64, "largest_side": 512, "preview_every": 2,
    "batch_size": 2, "enhancements": "0, 1", "held_out": 1, "denoise_steps": 2, "accumulation": 1,
    "warmup_steps": 1, "name": "fuzz", "folder": "pictures", "clear": "nothing",
}  # fmt: skip
Case = tuple[str, dict[str, Any]]
SUCCESS = "success"


class TooLong(BaseException):
    """Raised in a node that does not come to an end."""


class OddVae(Vae):
    """A VAE whose tensors are not what one expects."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.latent_channels = 16 if kind == "channels" else 4

    def encode(self, images: Tensor) -> Tensor:
        return self._odd(super().encode(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self._odd(super().decode(latents))

    def _odd(self, found: Tensor) -> Tensor:
        if self.kind == "nan":
            return found * float("nan")
        odd = {"empty": found[:0], "flat": found.flatten(1), "frames": found.unsqueeze(0)}
        return odd.get(self.kind, found)


class Clip:
    """A text encoder that makes numbers of the letters, or something odd."""

    def __init__(self, kind: str = "") -> None:
        self.kind = kind

    def tokenize(self, text: str) -> Any:
        words = text.split() if self.kind != "words" else list(text)
        return {"l": [[(sum(map(ord, word)) % 4096 + 1, 1.0) for word in words] + [(0, 1.0)]], "text": text}

    def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
        text = tokens.pop("text")
        encoded = conditioning(0 if self.kind == "same" else sum(map(ord, text)) + 31 * len(text))
        if self.kind == "nan":
            encoded[0][0] = encoded[0][0] * float("nan")
        elif self.kind == "wide":
            encoded = [[torch.cat([encoded[0][0]] * 2, -1), {}]]
        elif self.kind == "pooled":
            encoded[0][1]["pooled_output"] = torch.rand(1, 8)
        return {"empty": [], "two": encoded * 2}.get(self.kind, encoded)


class Fuzz:
    """Feed nodes of the pack with values, most of them good and some of them hostile.

    Args:
        nodes: gives a module of the pack by name.
    """

    def __init__(self, nodes: Callable[[str], Any]) -> None:
        self.nodes = nodes
        self.classes = {node.define_schema().node_id: node for node in nodes("nodes").NODES}
        self.error = nodes("domaingallery_core.errors").DomainGalleryError
        self._lora = self._trained()
        self._worst = self._memory()

    def cases(self, name: str) -> SearchStrategy[Case]:
        """Return cases of a node: one to three inputs are hostile or at random; the others are good."""
        inputs = self.classes[name].define_schema().inputs

        def changed(part: io.Input) -> SearchStrategy[Any]:
            kinds = part.get_io_type().split(",")
            hostile, allowed = st.one_of([HOSTILE[kind] for kind in kinds]), self._allowed(part)
            drawn = st.booleans().flatmap(lambda friendly: allowed if friendly else hostile)
            return drawn.map(lambda value: self._quick(part, value))

        def drawn(parts: list[io.Input]) -> SearchStrategy[Case]:
            return st.fixed_dictionaries({part.id: changed(part) for part in parts}).map(lambda v: (name, v))

        if not inputs:
            return st.just((name, {}))
        chosen = st.lists(st.sampled_from(inputs), min_size=1, max_size=3, unique_by=lambda part: part.id)
        return chosen.flatmap(drawn)

    def _allowed(self, part: io.Input) -> SearchStrategy[Any]:
        """Return values that the schema allows and that make no long work."""
        small = SMALL.get(part.id)
        if isinstance(part, io.Combo.Input):
            return st.sampled_from(list(part.options)) if part.options else st.just("")
        if isinstance(part, io.Boolean.Input):
            return st.booleans()
        if isinstance(part, io.Int.Input):
            most = small if isinstance(small, int) else part.max
            return st.integers(part.min or 0, most if most is not None else 100)
        if isinstance(part, io.Float.Input):
            return st.floats(part.min, part.max)
        return st.just(self.good(part))

    @staticmethod
    def _quick(part: io.Input, value: Any) -> Any:
        """Return a value, or a small one in place of one that is allowed and makes long work."""
        small = SMALL.get(part.id)
        if isinstance(small, int) and isinstance(value, int) and small < value <= (part.max or 0):
            return small
        if part.id in ("steps", "count") and type(value) is int and value == 0:  # as much as suits the model
            return small
        return value

    def good(self, part: io.Input) -> Any:
        """Return a value with which a node works."""
        kind = part.get_io_type()
        if part.id in SMALL and kind in ("INT", "STRING", "COMBO"):
            return SMALL[part.id]
        made = {
            "MODEL": Made("model", ("EPS",)), "VAE": Made("vae", ("",)), "CLIP": Made("clip", ("",)),
            "CONDITIONING": Made("conditioning", (Made("tensor", ((1, 6, 16),)), "none")),
            "LATENT": Made("latent", (Made("tensor", ((1, 4, 8, 8),)), "none")),
            "IMAGE": Made("tensor", ((2, 64, 64, 3),)), "MASK": Made("tensor", ((2, 64, 64),)),
            "DG_PROMPTS": Made("prompts", ("subject" if "subject" in part.id else "",)),
            "DG_DATASET": Made("dataset", (4, 3, 4, 8, None)),
            "DG_OPTIONS": Made("options", ("lora", 4, 0.0, 0.0, 2, "attention", "automatic")),
            "DG_RUN": Made("run", (0, 0, "", "automatic")), "LORA_MODEL": Made("lora", ("good",)),
            "DG_SOURCE,IMAGE": Made("source", (Made("tensor", ((3, 4, 8, 8),)),)),
            "DG_EMBEDDING": Made("embedding", (Made("tensor", ((2, 16),)), "clip_l")),
            "COMFY_AUTOGROW_V3": {"image0": Made("tensor", ((2, 64, 64, 3),))} if part.id == "images" else {},
            "COMFY_DYNAMICCOMBO_V3": {
                "method": "DreamBooth", "steps": 2, "learning_rate": 1e-3, "prior_weight": 1.0,
            },
        }  # fmt: skip
        if kind in made:
            return made[kind]
        return part.default if part.default is not None else (part.options or [""])[0]

    def run(self, case: Case) -> tuple[str, str]:
        """Run a case; return how it ended and what is wrong with that: nothing, if it is an allowed end."""
        return self.ended(lambda: self.call(case))

    def call(self, case: Case) -> Any:
        """Run a node on a case, as the host does."""
        name, changes = case
        node = self.classes[name]
        schema = node.define_schema()
        # Without a latent a picture of full size is drawn, which takes long.
        changes = {key: value for key, value in changes.items() if (key, value) != ("latent_image", None)}
        used = [p for p in schema.inputs if not p.optional or p.id in changes or p.id == "latent_image"]
        values = {part.id: self.make(changes.get(part.id, self.good(part))) for part in used}
        if schema.is_input_list:
            values = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
        with torch.inference_mode():
            return node.execute(**values)

    def ended(self, call: Callable[[], Any]) -> tuple[str, str]:
        """Call something; return how it ended, and what is wrong with that."""
        began = time.monotonic()
        try:
            with limited():
                problem = self._wrong(call())
            kind = SUCCESS
        except self.error as error:
            kind, problem = type(error).__name__, unclear(str(error))
        except TooLong:
            kind, problem = "other", f"no end after {SECONDS} s"
        except Exception as error:
            kind, problem = "other", f"{type(error).__name__}: {error}"
        memory = self._memory()
        if memory > self._worst + BYTES:
            problem = problem or f"{(memory - self._worst) / 2**20:.0f} MB"
        self._worst = max(self._worst, memory)
        if time.monotonic() - began > SECONDS:
            problem = problem or f"{time.monotonic() - began:.0f} s"
        return kind, problem

    def _wrong(self, output: Any) -> str:
        """Return what is wrong with the output of a node: it is damaged, or cannot be sent to a browser."""
        result, ui = getattr(output, "result", None) or (), getattr(output, "ui", None)
        for value in result:
            if isinstance(value, dict) and any(
                isinstance(t, Tensor) and t.is_floating_point() and not bool(torch.isfinite(t).all())
                for t in value.values()
            ):
                return "weights that are not finite"
        if isinstance(ui, dict):
            try:
                json.dumps(ui, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, ValueError) as error:
                return f"cannot be sent: {error}"
        return ""

    @staticmethod
    def _memory() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def make(self, value: Any) -> Any:
        """Return what a description stands for."""
        if isinstance(value, dict):
            return {key: self.make(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.make(each) for each in value]
        if not isinstance(value, Made):
            return value
        return getattr(self, f"_{value.maker}")(*map(self.make, value.given))

    def _tensor(self, *given: Any) -> Tensor:
        with torch.inference_mode():
            return tensor(*given)

    def _object(self) -> object:
        return object()

    def _conditioning(self, given: Any, extra: str) -> Any:
        options: dict[str, Any] = {
            "pooled": {"pooled_output": torch.rand(1, 8)},
            "bad pooled": {"pooled_output": "none"},
            "timesteps": {"start_percent": 0.2, "end_percent": 0.6},
            "area": {"area": (4, 4, 0, 0), "strength": 0.5, "set_area_to_bounds": False},
            "mask": {"mask": torch.ones(1, 64, 64), "mask_strength": 1.0, "set_area_to_bounds": False},
        }.get(extra, {})
        entry = [given] if extra == "no options" else [None if extra == "no text" else given, options]
        return [entry, entry] if extra == "twice" else [entry]

    def _latent(self, samples: Any, extra: str) -> dict[str, Any]:
        more: dict[str, Any] = {
            "mask": {"noise_mask": torch.ones(1, 1, 64, 64)},
            "bad mask": {"noise_mask": "none"},
            "batch index": {"batch_index": [3]},
            "bad batch index": {"batch_index": "none"},
        }.get(extra, {})
        return more if extra == "no samples" else {"samples": samples, **more}

    def _model(self, kind: str) -> Any:
        if kind == "pooled":
            return tiny_model(pooled=8)
        if kind == "half":
            return tiny_model(dtype=torch.float16)
        model = tiny_model(kind if kind != "nan" else "EPS")
        if kind == "nan":
            with torch.inference_mode():
                model.model.diffusion_model.out[2].bias.fill_(float("nan"))
        return model

    def _vae(self, kind: str) -> Any:
        return OddVae(kind)

    def _clip(self, kind: str) -> Any:
        return Clip(kind)

    def _prompts(self, kind: str) -> Any:
        changes: dict[str, dict[str, Any]] = {
            "wide": {"target": [[torch.rand(1, 6, 32), {}]]},
            "subject": {"identifier": "olis", "target": conditioning(17), "bare": conditioning(18)},
            "other": {"category": "house"},
        }
        more = [{"category": "house"}] if kind == "two" else []
        return tiny_prompts(self.nodes, *more, **changes.get(kind, {}))

    def _dataset(self, sources: int, targets: int, channels: int, side: int, category: str | None) -> Any:
        examples = self.nodes("domaingallery_core.data.examples").Examples

        def latents(count: int, seed: int) -> Any:
            return examples(tiny_latents(count, seed, channels).repeat(1, 1, 2, 2)[..., :side, :side])

        target = latents(targets, 1) if targets else None
        return tiny_dataset(self.nodes, source=latents(sources, 0), target=target, category=category)

    def _options(self, adapter, rank, dropout, similarity, batch_size, targets, precision) -> Any:
        return self.nodes("nodes.sockets").TrainingOptions(
            kind=adapter, rank=rank, dropout=dropout, weights={"similarity": similarity},
            batch_size=batch_size, targets=targets, precision=precision, denoise_steps=1,
        )  # fmt: skip

    def _run(self, previews: int, checkpoints: int, name: str, checkpointing: str) -> Any:
        return self.nodes("nodes.sockets").RunOptions(
            preview_every=previews, preview_count=1, preview_steps=1, checkpoint_every=checkpoints,
            run_name=name, gradient_checkpointing=checkpointing, resume="start over",
        )  # fmt: skip

    def _embedding(self, vectors: Any, name: str) -> Any:
        return self.nodes("nodes.sockets").TrainedEmbedding({name: vectors}, metadata={})

    def _source(self, latents: Any) -> Any:
        return self.nodes("nodes.sockets").SourceLatents(latents=latents, vae=Vae(), size=(64, 64))

    def _trained(self) -> Callable[[str], Any]:
        node = self.classes["DomainGalleryErase"]
        inputs = [part for part in node.define_schema().inputs if not part.optional or part.id == "options"]
        with torch.inference_mode():
            good = node.execute(**{part.id: self.make(self.good(part)) for part in inputs}).result[0]

        def lora(kind: str) -> Any:
            tensors = dict(good)
            if kind == "empty":
                return {}
            if kind == "half":
                return {name: value.half() for name, value in tensors.items()}
            if kind == "nan":
                return {name: value * float("nan") for name, value in tensors.items()}
            if kind == "other shapes":
                return {name: value[:3] if value.ndim else value[None] for name, value in tensors.items()}
            if kind == "other names":
                return {f"x.{name}": value for name, value in tensors.items()}
            if kind == "odd names":
                return {f"{name}\0\ud800": value for name, value in tensors.items()}
            if kind == "numbers":
                return {name: 1.0 for name in tensors}
            if kind == "kohya":
                return {f"lora_unet_{name}": value for name, value in tensors.items()}
            return good

        return lora


def attempts(
    cases: SearchStrategy[Any],
    run: Callable[[Any], tuple[str, str]],
    count: int,
    first: int,
    seconds: float = float("inf"),
) -> tuple[Counter[str], Counter[str]]:
    """Run random cases; return how they ended, and what was wrong, each with an example.

    Args:
        count: of cases, at most.
        first: the seed.
        seconds: after which no more are run than one.
    """
    ends: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    examples: dict[str, str] = {}
    until = time.monotonic() + seconds

    @seed(first)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def each(case: Any) -> None:
        if ends and time.monotonic() > until:
            return
        end, problem = run(case)
        ends[end] += 1
        if problem:
            example = examples.setdefault(problem[:60], f"{problem[:400]} in {str(case)[:400]}")
            problems[example] += 1

    each()
    return ends, problems


@contextmanager
def limited() -> Iterator[None]:
    """Return a context that ends with TooLong when it takes much too long."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def unclear(text: str) -> str:
    """Return what a message lacks: what was expected, what came, what to do, in few plain words."""
    lacks = []
    if not re.match(r"(.{1,120} \(node \w+\): )?Expected ", text):
        lacks.append("what was expected")
    if "got" not in text:
        lacks.append("what came")
    if not text.endswith(".") or ". " not in text:
        lacks.append("what to do")
    if len(text) > 1500 or any(ord(sign) < 32 or 0xD800 <= ord(sign) < 0xE000 for sign in text):
        lacks.append("plain words")
    return f"the message lacks {', '.join(lacks)}: {text[:300]!r}" if lacks else ""
