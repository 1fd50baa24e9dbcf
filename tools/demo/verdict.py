"""What a report says: what should be, what is, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """Compare a share of a report with a bound.

    Attributes:
        path: where it is in the report, from the outside in.
        bound: the least that it should be; the most, for `below`.
    """

    text: str
    path: tuple[str, ...]
    bound: float
    below: bool = False

    def value(self, report: dict[str, Any]) -> float:
        found: Any = report
        for name in self.path:
            found = found[name]
        return found

    def holds(self, report: dict[str, Any]) -> bool:
        value = self.value(report)
        return value <= self.bound if self.below else value >= self.bound


#: Other seeds than the default one reach these too. A share is one of at least 64 pictures.
CHECKS = (
    Check("before, sks draws camouflage", ("prior_share", "base"), 0.9),
    Check("erased, it does not", ("prior_share", "erased"), 0.2, below=True),
    Check("then a sks face is in the domain", ("domain_share", "intra"), 0.9),
    Check("  and a face", ("category_share", "intra"), 0.9),
    Check("other categories too, by V-uncond", ("domain_share", "cross", "V-uncond"), 0.7),
    Check("  and what they should be", ("category_share", "cross", "V-uncond"), 0.8),
    Check("  by VN-N", ("domain_share", "cross", "VN-N"), 0.7),
    Check("  and what they should be", ("category_share", "cross", "VN-N"), 0.8),
    Check("with an extra attribute", ("domain_share", "extra_attribute"), 0.6),
    Check("a subject in the domain", ("domain_share", "subject"), 0.5),
    Check("  and itself", ("subject_share",), 0.02),
)
UNENHANCED = ("domain_share", "cross", "none")


def verdict(report: dict[str, Any]) -> str:
    """Return a table of what should be and what is, a sentence on it, and what to do next."""
    lines = [f"  {'share of the pictures':<36}{'should be':>14}{'is':>8}"]
    wrong = [check for check in CHECKS if not check.holds(report)]
    for check in CHECKS:
        bound = f"{'at most' if check.below else 'at least'} {check.bound:.2f}"
        mark = "  <-" if check in wrong else ""
        lines.append(f"  {check.text:<36}{bound:>14}{check.value(report):>8.2f}{mark}")
    none = Check("", UNENHANCED, 0.0).value(report)
    lines.append(f"  {'other categories, not enhanced':<36}{'':>14}{none:>8.2f}")
    return "\n".join([*lines, "", *(_failed(wrong, report) if wrong else _passed())])


def _passed() -> list[str]:
    return [
        f"All {len(CHECKS)} are as they should be: the pack trains and draws on this machine.",
        "Next: python3 gallery.py serve opens the templates in the browser.",
    ]


def _failed(wrong: list[Check], report: dict[str, Any]) -> list[str]:
    other = report["seed"] + 1
    return [
        f"{len(wrong)} of {len(CHECKS)} are not as they should be, and marked. One seed in many does that.",
        f"Next: python3 gallery.py demo --seed {other}; if it is as bad, report it with report.json.",
    ]
