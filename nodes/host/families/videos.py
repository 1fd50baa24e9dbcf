"""Transformers that draw films, used for single images: a row for each family."""

from __future__ import annotations

from .base import Drawing
from .transformer import Transformer

_ORIGIN = "the host's template, as a square of about its area"


class Wan(Transformer):
    """Wan 2.1 and 2.2, text to image."""

    name, models, stacks, text = "wan", ("WAN21", "WAN22"), ("blocks",), "text_embedding.0"
    drawing = Drawing(size=640, steps=30, cfg=6.0, sampler="uni_pc", scheduler="simple", origin=_ORIGIN)


class HunyuanVideo(Transformer):
    """HunyuanVideo, text to image; it reads a guidance scale and learns at 1."""

    name, models, text = "hunyuan-video", ("HunyuanVideo",), "txt_in.input_embedder"
    stacks, guidance = ("double_blocks", "single_blocks"), 1.0
    drawing = Drawing(size=640, steps=20, cfg=1.0, sampler="euler", scheduler="simple", origin=_ORIGIN)
