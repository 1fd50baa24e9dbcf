"""Settings: what is said of them once, and is checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from said import explained, said

from domaingallery_core.errors import InputError
from domaingallery_core.settings import Setting, Settings, check_number, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Toys(Settings):
    """Have a setting of each kind, and a field of which nothing is said."""

    note: str = ""
    share: float = setting(0.5, "How much of it.", most=1.0)
    scale: float = setting(2.0, above=True)
    count: int = setting(3, "How many.", least=1, most=9, step=2, digits=1, label="number")
    text: str = setting("a")
    colour: str = setting("red", choices=("red", "blue"))


def test_of_a_setting_what_is_not_said_is_this():
    assert Setting() == Setting(
        help="", least=0.0, most=math.inf, above=False, choices=None, step=None, digits=None, label=None
    )


def test_what_is_said_of_each_setting_is_known():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Later(Settings):
        length: int = setting(7, "How long.", least=2)

    assert said(Later) == {"length": (7, Setting(least=2))} and explained(Later) == {"length"}
    assert said(Toys) == {
        "share": (0.5, Setting(most=1.0)),
        "scale": (2.0, Setting(above=True)),
        "count": (3, Setting(least=1, most=9, step=2, digits=1, label="number")),
        "text": ("a", Setting()),
        "colour": ("red", Setting(choices=("red", "blue"))),
    }
    assert explained(Toys) == {"share", "count"}
    assert Toys() == Toys(note="", share=0.5, scale=2.0, count=3, text="a", colour="red")


@pytest.mark.parametrize(
    "values",
    [{"share": 0}, {"share": 1}, {"scale": 1e-9}, {"scale": 1e9}, {"count": 1}, {"count": 9}, {"text": ""},
     {"colour": "blue"}, {"note": 7}],
    ids=str,
)  # fmt: skip
def test_a_value_in_the_range_is_taken(values):
    assert Toys(**values).to_dict() == Toys().to_dict() | values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": -0.1}, "Expected share to be a finite number, at least 0 and at most 1, got -0.1"),
        ({"share": 1.1}, "Expected share to be a finite number, at least 0 and at most 1, got 1.1"),
        ({"share": "1"}, "Expected share to be a finite number, .*, got '1'"),
        ({"share": True}, "Expected share to be a finite number, .*, got True"),
        ({"share": None}, "Expected share to be a finite number, .*, got nothing"),
        ({"share": math.nan}, "Expected share to be a finite number, .*, got nan"),
        ({"scale": 0}, "Expected scale to be a finite number, more than 0, got 0. Change scale"),
        ({"scale": math.inf}, "Expected scale to be a finite number, more than 0, got inf"),
        ({"count": 0}, "Expected count to be a whole number, at least 1 and at most 9, got 0"),
        ({"count": 10}, "Expected count to be a whole number, at least 1 and at most 9, got 10"),
        ({"count": 2.0}, "Expected count to be a whole number, .*, got 2.0"),
        ({"text": 5}, "Expected text to be a text, got 5. Change text"),
        ({"text": None}, "Expected text to be a text, got nothing"),
        ({"colour": "green"}, "Expected colour to be one of red, blue, got 'green'. Choose one"),
        ({"colour": 1}, "Expected colour to be one of red, blue, got 1"),
    ],
    ids=str,
)
def test_any_other_value_is_refused_with_what_was_expected(values, message):
    with pytest.raises(InputError, match=message):
        Toys(**values)


def test_a_number_may_be_a_fraction_and_its_least_unless_it_is_said_otherwise():
    check_number("share", 0.5, least=0.5)
    for asked in ({"above": True}, {"whole": True}, {"most": 0.4}):
        with pytest.raises(InputError, match="Expected share to be"):
            check_number("share", 0.5, least=0.5, **asked)


def test_settings_are_plain_values_and_back_and_no_key_is_passed_over():
    toys = Toys(share=0.25, colour="blue")

    assert Toys.from_dict(toys.to_dict()) == toys and Toys.from_dict({}) == Toys()
    with pytest.raises(
        InputError, match=r"with the keys \['colour', .*\], got also \['shape', 'size'\]\. Rem"
    ):
        Toys.from_dict({"size": 1, "shape": 2, "share": 0.25})
