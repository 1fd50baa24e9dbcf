"""The terms that several methods share."""

from __future__ import annotations

from .method import Term

TARGET = Term(name="target", reads="target", weight=None, regresses=True)
PRIOR = Term(
    name="prior",
    reads="source",
    regresses=True,
    help="Weight of keeping the source images as they are (Eq. 1 on source images).",
)
DISENTANGLEMENT = Term(
    name="disentanglement",
    reads="source",
    weight=10.0,
    help="Weight of leaving the category itself untouched (Eq. 3).",
)
SIMILARITY = Term(
    name="similarity",
    reads="source",
    least_batch=3,
    help="Weight of keeping images as different from each other as they were (Eq. 4); stage 2 only. By far "
    "the slowest term.",
)
