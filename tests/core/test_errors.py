"""Errors and values as a user sees them."""

from __future__ import annotations

import math
import traceback

import pytest
import torch

from domaingallery_core.errors import DomainGalleryError, shown


@pytest.mark.parametrize("kind", [DomainGalleryError, *DomainGalleryError.__subclasses__()])
def test_an_error_is_shown_with_the_name_of_the_pack(kind):
    """Not with the path of the pack, which the host takes for the name of its module."""
    assert traceback.format_exception_only(kind("why")) == [f"domaingallery.{kind.__name__}: why\n"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (True, "True"),
        (2**64, "18446744073709551616"),
        (0.25, "0.25"),
        (math.nan, "nan"),
        (-(10**40), "a number of 133 bits"),
        ("Zoë", "'Zoë'"),
        ("Zoë\n\u202e\ud800", r"'Zoë\n\u202e\ud800'"),
        ("a" * 78, f"'{'a' * 78}'"),
        ("a" * 79, f"'{'a' * 79}..."),
        ([1, 2], "a list"),
        (b"bytes", "a bytes"),
        (torch.zeros(2, 3, dtype=torch.float16), "a tensor of (2, 3) in float16"),
    ],
)
def test_a_value_is_shown_short_and_without_what_cannot_be_shown(value, text):
    assert shown(value) == text


def test_a_number_that_python_refuses_to_write_out_is_shown():
    assert shown(10**5000) == "a number of 16610 bits"
