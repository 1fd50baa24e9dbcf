"""Systems that teach a model something, a file each: its terms, what they read, and its losses."""

from ..rooms import import_all
from .evaluation import Ask
from .method import METHODS, Method, MethodSettings, Term
from .noising import Drawing, NoisedBatch, NoisedImages, NoisedStep, draw, noised_batch

__all__ = [
    "METHODS", "Ask", "Drawing", "Method", "MethodSettings", "NoisedBatch", "NoisedImages", "NoisedStep",
    "Term", "draw", "noised_batch",
]  # fmt: skip

import_all(__name__, __path__)
