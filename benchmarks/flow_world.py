"""Take a small flow transformer through the whole method: python -m benchmarks.flow_world --host COMFYUI
--folder FOLDER --minutes 45

Trains a thin SD3 on the plain pictures of the sketchbook's world for so many minutes on one core; run again
with more it goes on, and with fewer it goes straight to the method. Then the demo's job runs on it through
the pack's own nodes: source images, erasure, finetuning with Eq. 4 on the tokens of its blocks, a subject,
and pictures with and without enhancement. The shares are those of the demo's report.json, beside the limits
that the demo keeps. Exit 1 where one is not kept. The folder gets `report.json` and `gallery.png`; source
images are kept there and not drawn again.

With --features the second stage is repeated with other choices of what Eq. 4 reads, and a table compares
them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.flow.features import CHOICES, NONE, compare, right
from benchmarks.flow.method import FLOW, Job
from benchmarks.flow.model import FULL, Size, demo, load_flow
from benchmarks.flow.training import Training
from benchmarks.unet_denoiser import find_host
from domaingallery_core.sketchbook.classifier import Classifier
from domaingallery_core.sketchbook.things import CATEGORIES
from tools.demo.measure import LEAST, MODES, Pictures, Scenarios, shares
from tools.demo.scenarios import OTHERS, TAUGHT
from tools.demo.sheet import make_sheet
from tools.make.workflow_parts import DOMAIN, Numbers

#: Of the demo: what is to be at least, or at most, so much.
LIMITS: dict[str, tuple[str, float]] = {
    "categories of the base model": (">=", 0.8),
    "prior, base model": (">=", 0.8),
    "prior, erased": ("<=", 0.1),
    "domain": (">=", 0.85),
    "categories in the domain": (">=", 0.8),
    "others, the better mode": (">=", 0.7),
    "others, V-uncond less none": (">=", 0.0),
    "others, VN-N less none": (">=", 0.0),
    "their categories, the better mode": (">=", 0.8),
}


def rows(report: dict[str, Any]) -> dict[str, float]:
    """Return what is limited, of a report."""
    domain, category = report["domain_share"], report["category_share"]
    none, *enhanced = (domain["cross"][mode] for mode in MODES)
    better = max(MODES[1:], key=lambda mode: domain["cross"][mode])
    values = (
        report["base_categories"], report["prior_share"]["base"], report["prior_share"]["erased"],
        domain["intra"], category["intra"], max(enhanced), enhanced[0] - none, enhanced[1] - none,
        category["cross"][better],
    )  # fmt: skip
    return dict(zip(LIMITS, values, strict=True))


def kept(name: str, value: float) -> bool:
    """Tell whether a limit is kept; what is compared with nothing must be above it."""
    sign, limit = LIMITS[name]
    return value <= limit if sign == "<=" else value >= limit and (limit > 0 or value > 0)


def table(report: dict[str, Any]) -> str:
    """Return the shares beside the limits, and those without a limit."""
    lines = [f"{'share of pictures':36}{'found':>8}{'limit':>10}"]
    for name, value in rows(report).items():
        sign, limit = LIMITS[name]
        at = f"{sign} {limit:.2f}" if limit else "> 0"
        lines.append(f"{name:36}{value:8.2f}{at:>10}  {'' if kept(name, value) else 'not kept'}".rstrip())
    domain, category = report["domain_share"], report["category_share"]
    for name, share_of in (("others in the domain", domain), ("their categories", category)):
        found = "".join(f"{mode:>10} {share_of['cross'][mode]:.2f}" for mode in MODES)
        lines.append(f"{name:26}{found}")
    for key, name in (("extra_attribute", "extra attribute"), ("subject", "subject")):
        lines.append(f"{name:26}    domain {domain[key]:.2f}  category {category[key]:.2f}")
    return "\n".join([*lines, f"subject itself                 {report['subject_share']:.2f}"])


def sheet(plain: Pictures, scenarios: Scenarios) -> Any:
    """Return a picture of what was drawn."""
    s = scenarios
    pictures = {
        "base model": plain, "base model, sks": s.base, "erased": s.erased, f"a sks {TAUGHT}": s.intra,
        **{f"{each}, {mode}": s.cross[mode].only(each) for each in OTHERS for mode in MODES},
        "extra attribute": s.extra_attribute, "subject": s.subject,
    }  # fmt: skip
    several = ("base model", "base model, sks", "erased")  # categories in a row, the same number of each
    rows = [
        (name, found.images[:: len(found.images) // 10 or 1] if name in several else found.images)
        for name, found in pictures.items()
    ]
    return make_sheet("The method on a small flow transformer", rows)


def measure(job: Job, features: Sequence[str]) -> dict[str, Any]:
    """Run the job, and the trial of some choices of features; return the report."""
    classifier = Classifier.load()
    plain = job.plain(-(-job.least // len(CATEGORIES)))
    learned = job.prepare()
    scenarios = job.run(*learned)
    report = {
        "base_categories": right(classifier, plain),
        **shares(scenarios, classify=classifier.classify, domain=DOMAIN, taught=TAUGHT),
        "sheet": sheet(plain, scenarios),
    }
    if features:
        report["features"] = {choice: compare(job, learned, choice) for choice in features}
    return report


def features_table(found: dict[str, dict[str, Any]]) -> str:
    """Return what came of each choice; of other categories, the shares in the domain and right."""
    head = f"{'Eq. 4 reads':32}{'domain':>8}{'right':>7}{'variety':>9}"
    lines = [head + "".join(f"{'others, ' + mode:>20}" for mode in MODES) + f"{'s':>8}"]
    for choice, row in found.items():
        others = "".join(f"{row[mode]['domain']:13.2f} / {row[mode]['category']:.2f}" for mode in MODES)
        lines.append(
            f"{choice:32}{row['domain']:8.2f}{row['category']:7.2f}{row['variety']:9.3f}{others}"
            f"{row['seconds']:8.0f}"
        )
    return "\n".join(lines)


def run(
    host: Path, folder: Path, minutes: float, *, seed: int = 0, features: Sequence[str] = (),
    size: Size = FULL, pictures: int = 60000, numbers: Numbers = FLOW, least: int = LEAST,
) -> dict[str, Any]:  # fmt: skip
    """Train, go through the method, write the report and the sheet; return the report."""
    folder.mkdir(parents=True, exist_ok=True)
    sketchbook = demo(host)
    importlib.import_module("folder_paths").set_output_directory(str((folder / "output").resolve()))
    training = Training(sketchbook, folder, size, pictures=pictures)
    training.run(minutes)
    model = load_flow(sketchbook, size, training.average)
    report = measure(Job(sketchbook, model, numbers, seed=seed, least=least), features)
    report.pop("sheet").save(folder / "gallery.png")
    report |= {"seed": seed, "steps": training.step, "minutes": round(training.seconds / 60, 1)}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.flow_world", description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--folder", type=Path, required=True, help="for pictures, state and report")
    parser.add_argument("--minutes", type=float, default=45, help="of training, those spent before included")
    parser.add_argument("--seed", type=int, default=0, help="of the method")
    parser.add_argument("--features", action="store_true", help="compare what Eq. 4 may read")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = run(
        find_host(options.host), options.folder, options.minutes, seed=options.seed,
        features=(*CHOICES, NONE) if options.features else (),
    )  # fmt: skip
    print(table(report))
    if options.features:
        print(features_table(report["features"]))
    return 0 if all(kept(name, value) for name, value in rows(report).items()) else 1


if __name__ == "__main__":
    sys.exit(main())
