"""Values to feed to nodes, described so that a case can be printed, kept and made again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8", "int64", "bool", "complex64")
FILLS = ("random", "zeros", "nan", "infinite", "huge", "negative", "shared", "strided")


@dataclass(frozen=True, slots=True)
class Made:
    """Describe a value that is made when it is needed: the name of a maker, and what it is given."""

    maker: str
    given: tuple = ()


def tensor(shape: tuple[int, ...], dtype: str = "float32", fill: str = "random") -> torch.Tensor:
    """Return a tensor; "shared" ones are one number expanded, "strided" ones lie strangely in memory."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if fill in ("nan", "infinite", "huge") and values.numel():
        values.view(-1)[0] = {"nan": math.nan, "infinite": math.inf, "huge": 1e30}[fill]
    elif fill == "zeros":
        values = torch.zeros(shape)
    elif fill == "negative":
        values = -9 * values
    elif fill == "shared":
        values = torch.full((), 0.5).expand(shape)
    elif fill == "strided" and values.ndim > 1:
        values = values.transpose(0, -1).contiguous().transpose(0, -1)
    return values if dtype == "float32" else values.to(getattr(torch, dtype))


def tensors(*shape: int) -> SearchStrategy[Made]:
    """Return tensors of about a shape: of it, of others near to it, and of any."""
    near = st.tuples(*(st.sampled_from([side, 0, 1, side + 1, 2 * side]) for side in shape))
    ranks = st.sampled_from([shape[:-1], shape[1:], (*shape, 3), (1, *shape), (), (0,)])
    shapes = st.one_of(st.just(shape), near, ranks)
    return st.builds(
        lambda *given: Made("tensor", given), shapes, st.sampled_from(DTYPES), st.sampled_from(FILLS)
    )


#: What no input takes, and a node of another pack may still hand over.
STRANGE = st.sampled_from(
    [
        None,
        True,
        3,
        -1,
        2**70,
        10**400,
        0.5,
        math.nan,
        "word",
        b"bytes",
        [],
        {},
        [None],
        {"a": 1},
        Made("object"),
    ]
)
NUMBERS = st.one_of(
    STRANGE,
    st.floats(),
    st.integers(),
    st.sampled_from([math.inf, -math.inf, 0, 0.0, -1, 1e308, 2**31, 2**63, 2**64 - 1, "3", "nan"]),
)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(codec=None), max_size=20),
    st.sampled_from(
        [
            "", " ", "\n", "\0", "a\0b", "\ud800", "\u202eabc", "a" * 10_000, "a" * 10_001, "é" * 300,
            "🦊" * 100, "..", "../x", "../../etc/passwd", "/etc/passwd", "C:\\x", "\\\\host\\share", "~/x",
            "a/../b", "a/", "./a", "a//b", "con", "nul.txt", "a:b", "x" * 300, "/".join("a" * 60),
            "%date:hhmmss%", "%s%n", "{0}", "<script>alert(1)</script>", "(" * 2000, "[" * 500, "*" * 2000,
            "*a" * 1000 + "b", "[a-", "a,b", ",", "1,2", "0, 0.5", "nan", "inf, 1", "1e999",
            "6 face, 4 house", "-1 face", "9999999999 face", "sks sks", "face", "attention", "*",
            "attn2.to_*", "a{1,999999}", "(a+)+$", "None",
        ]
    ),
    st.text("*?[]!-a.", max_size=60),
    STRANGE,
)  # fmt: skip
CONDITIONINGS = st.one_of(
    STRANGE,
    st.builds(
        lambda given, extra: Made("conditioning", (given, extra)),
        tensors(1, 6, 16),
        st.sampled_from(
            ["none", "pooled", "bad pooled", "no options", "no text", "timesteps", "area", "mask", "twice"]
        ),
    ),
)
LATENTS = st.one_of(
    STRANGE,
    st.builds(
        lambda given, extra: Made("latent", (given, extra)),
        st.one_of(tensors(1, 4, 8, 8), tensors(2, 4, 8, 8)),
        st.sampled_from(["none", "mask", "bad mask", "batch index", "bad batch index", "no samples"]),
    ),
)
METHODS = ["DreamBooth", "DreamBooth LoRA", "DomainStudio", "Textual Inversion"]
#: Hostile values by the type of an input.
HOSTILE: dict[str, SearchStrategy[Any]] = {
    "INT": NUMBERS,
    "FLOAT": NUMBERS,
    "STRING": TEXTS,
    "COMBO": TEXTS,
    "BOOLEAN": STRANGE,
    "IMAGE": st.one_of(STRANGE, tensors(2, 64, 64, 3)),
    "MASK": st.one_of(STRANGE, tensors(3, 64, 64), tensors(64, 64)),
    "CONDITIONING": CONDITIONINGS,
    "LATENT": LATENTS,
    "MODEL": st.one_of(
        STRANGE,
        st.builds(
            lambda kind: Made("model", (kind,)),
            st.sampled_from(["V_PREDICTION", "FLOW", "STABLE_CASCADE", "pooled", "half", "nan"]),
        ),
    ),
    "VAE": st.one_of(
        STRANGE,
        st.builds(
            lambda kind: Made("vae", (kind,)), st.sampled_from(["nan", "channels", "empty", "flat", "frames"])
        ),
    ),
    "CLIP": st.one_of(
        STRANGE,
        st.builds(
            lambda kind: Made("clip", (kind,)),
            st.sampled_from(["nan", "same", "empty", "two", "wide", "words", "pooled"]),
        ),
    ),
    "DG_PROMPTS": st.one_of(
        STRANGE,
        st.builds(
            lambda kind: Made("prompts", (kind,)), st.sampled_from(["two", "wide", "subject", "other"])
        ),
    ),
    "DG_DATASET": st.one_of(
        STRANGE,
        st.builds(
            lambda *given: Made("dataset", given),
            st.integers(1, 5),
            st.integers(0, 3),
            st.sampled_from([4, 16, 3]),
            st.sampled_from([8, 1, 5, 12]),
            st.sampled_from([None, "face", "house"]),
        ),
    ),
    "DG_OPTIONS": st.one_of(
        STRANGE,
        st.builds(
            lambda *given: Made("options", given),
            st.sampled_from(["lora", "dora", "loha", "lokr"]),
            st.sampled_from([1, 4, 1000]),
            st.sampled_from([0.0, 0.5]),
            st.sampled_from([0.0, 1.0, 5.0]),
            st.sampled_from([1, 4]),
            st.sampled_from(["attention", "*", "nothing", "out.*"]),
            st.sampled_from(["automatic", "float16", "bfloat16"]),
        ),
    ),
    "DG_RUN": st.one_of(
        STRANGE,
        st.builds(
            lambda *given: Made("run", given), st.sampled_from([0, 1]), st.sampled_from([0, 1]),
            st.sampled_from(["", "name", "a/b"]), st.sampled_from(["automatic", "on"]),
        ),
    ),
    "DG_SOURCE": st.one_of(
        STRANGE,
        st.builds(
            lambda count, fill: Made("source", (Made("tensor", ((count, 4, 8, 8), "float32", fill)),)),
            st.integers(1, 4), st.sampled_from(FILLS),
        ),
    ),
    "DG_EMBEDDING": st.one_of(
        STRANGE,
        st.builds(
            lambda *given: Made("embedding", given), tensors(2, 16), st.sampled_from(["clip_l", "", "a\0"])
        ),
    ),
    "COMFY_AUTOGROW_V3": st.one_of(
        STRANGE,
        st.dictionaries(
            st.sampled_from(["image0", "image1", "note0"]), st.one_of(TEXTS, tensors(2, 64, 64, 3))
        ),
    ),
    "COMFY_DYNAMICCOMBO_V3": st.one_of(
        STRANGE,
        TEXTS,
        st.fixed_dictionaries(
            {
                "method": st.one_of(TEXTS, st.sampled_from(METHODS)),
                "steps": st.one_of(STRANGE, st.just(2)),
                "learning_rate": st.one_of(NUMBERS, st.just(1e-3)),
            },
            optional={
                "clip": st.one_of(STRANGE, st.just(Made("clip", ("",)))),
                "text_encoder": st.one_of(STRANGE, st.just(Made("clip", ("",)))),
                "word": TEXTS,
                "vectors": st.one_of(STRANGE, st.integers(1, 3)),
                "templates": st.one_of(TEXTS, st.just("style")),
                "copies": st.one_of(TEXTS, st.sampled_from(["float32", "bfloat16"])),
                "variant": st.one_of(TEXTS, st.just("released")),
                "prior_weight": st.one_of(NUMBERS, st.floats(0, 2)),
                "image_similarity_weight": st.one_of(NUMBERS, st.floats(0, 2)),
                "frequency_similarity_weight": st.one_of(NUMBERS, st.floats(0, 2)),
                "frequency_weight": st.one_of(NUMBERS, st.floats(0, 2)),
                "style_weight": st.one_of(NUMBERS, st.floats(0, 2)),
                "style_prompts": st.one_of(STRANGE, st.just(Made("prompts", ("subject",)))),
            },
        ),
    ),
    "LORA_MODEL": st.one_of(
        STRANGE,
        st.builds(
            lambda *given: Made("lora", given),
            st.sampled_from(
                "good, empty, half, nan, other shapes, other names, odd names, numbers, kohya".split(", ")
            ),
        ),
        st.dictionaries(st.text(max_size=20), st.one_of(STRANGE, tensors(4, 32)), max_size=3),
    ),
}  # fmt: skip
