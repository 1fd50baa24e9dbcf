"""The demo: prompts in variants, shares, bars, sheets, and the whole job in the real host, tiny."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tools.demo import __main__ as demo
from tools.demo import scenarios
from tools.demo.measure import MODES, Pictures, Scenarios, shares
from tools.demo.prompts import derived_seed, only, seeded, variant_id, variants
from tools.demo.sheet import make_sheet, make_thumbnail, plot_losses, smoothed
from tools.demo.terminal import Terminal, clock
from tools.demo.verdict import CHECKS, verdict
from tools.host.graphs import GraphError
from tools.make.workflow_parts import DOMAIN
from tools.make.workflows import SHORT, WORKFLOWS, make_workflows

# ---------------------------------------------------------------- prompts


def node(title, /, **inputs):
    return {"class_type": title, "inputs": inputs, "_meta": {"title": title}}


@pytest.fixture
def prompt():
    return {
        "1": node("Load"),
        "2": node("Prompt", text="a", clip=["1", 0]),
        "3": node("Seed", value=5),
        "4": node("Draw", seed=["3", 0], text=["2", 0], model=["1", 0]),
        "5": node("Save", images=["4", 0]),
        "6": node("Other", seed=7, model=["1", 0]),
    }


def test_variants_share_what_no_change_reaches(prompt):
    merged = variants(prompt, [{"Prompt": {"text": "b"}}, {"Prompt": {"text": "c"}}])

    assert sorted(merged) == ["1", "2-0", "2-1", "3", "4-0", "4-1", "5-0", "5-1", "6"]
    assert merged["2-0"]["inputs"] == {"text": "b", "clip": ["1", 0]}
    assert merged["4-1"]["inputs"] == {"seed": ["3", 0], "text": ["2-1", 0], "model": ["1", 0]}
    assert merged[variant_id("5", 1)]["inputs"] == {"images": ["4-1", 0]}
    assert prompt["2"]["inputs"]["text"] == "a"


def test_variants_that_change_nothing_or_the_wrong_node_are_refused(prompt):
    with pytest.raises(GraphError, match="changes nothing"):
        variants(prompt, [{}])
    with pytest.raises(GraphError, match="no input"):
        variants(prompt, [{"Prompt": {"texts": "b"}}])


def test_only_keeps_what_is_needed(prompt):
    assert sorted(only(prompt, ["Save"])) == ["1", "2", "3", "4", "5"]


def test_every_seed_comes_from_one(prompt):
    a, b, c = seeded(prompt, 0, "x"), seeded(prompt, 1, "x"), seeded(prompt, 0, "y")

    found = {p[n]["inputs"][key] for p in (a, b, c) for n, key in (("3", "value"), ("6", "seed"))}
    assert len(found) == 6
    assert all(0 <= seed < 2**32 for seed in found)
    assert a["4"]["inputs"]["seed"] == ["3", 0]
    assert a == seeded(prompt, 0, "x")
    assert derived_seed(0, "a", "b") != derived_seed(0, "a/b", "")


# ---------------------------------------------------------------- shares


def pictures(count, asked="face", value=0):
    return Pictures((Image.new("RGB", (64, 64), (value, value, value)),) * count, (asked,) * count)


def classify(images):
    """Read labels off the brightness: 1 camouflage, 2 the domain, 3 a house in the domain, 4 the subject."""
    values = (images[:, 0, 0, 0] * 255).round().int().tolist()
    return SimpleNamespace(
        category=["house" if v == 3 else "face" for v in values],
        style=["blueprint" if v in (2, 3, 4) else "plain" for v in values],
        camouflage=[v == 1 for v in values],
        olis=[v == 4 for v in values],
    )


def test_shares_count_what_the_classifier_sees():
    measured = Scenarios(
        base=pictures(48, value=1) + pictures(16),
        erased=pictures(16, value=1) + pictures(64, "house", 3),
        intra=pictures(64, value=2),
        cross={mode: pictures(32 + i, "house", 3) + pictures(32, "house") for i, mode in enumerate(MODES)},
        extra_attribute=pictures(64, value=3),
        subject=pictures(32, value=4) + pictures(32, value=2),
    )

    found = shares(measured, classify=classify, domain="blueprint", taught="face")

    assert found == {
        "prior_share": {"base": 0.75, "erased": 0.2, "erased_other_categories": 0.0},
        "domain_share": {
            "intra": 1.0,
            "cross": {"none": 0.5, "V-uncond": 0.5077, "VN-N": 0.5152},
            "extra_attribute": 1.0,
            "subject": 1.0,
        },
        "category_share": {
            "base": 1.0,
            "erased": 1.0,
            "intra": 1.0,
            "cross": {"none": 0.5, "V-uncond": 0.5077, "VN-N": 0.5152},
            "extra_attribute": 0.0,
            "subject": 1.0,
        },
        "subject_share": 0.5,
    }


def test_a_share_of_few_pictures_is_refused():
    few = Scenarios(
        base=pictures(64), erased=pictures(64), intra=pictures(64), extra_attribute=pictures(64),
        cross=dict.fromkeys(MODES, pictures(64)), subject=pictures(64),
    )  # fmt: skip

    with pytest.raises(ValueError, match="at least 64 pictures of 'others', got 0"):
        shares(few, classify=classify, domain="blueprint", taught="face")


def test_pictures_are_read_as_they_were_saved():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")

    read = Pictures.from_png([file.getvalue()] * 2, "cat")

    assert read.asked == ("cat", "cat")
    expected = torch.from_numpy(image).movedim(-1, 0).float() / 255
    assert torch.equal(read.tensor(), expected.expand(2, 3, 64, 64))


# ---------------------------------------------------------------- the verdict


def a_report(**changes):
    cross = {"none": 0.3, "V-uncond": 0.9, "VN-N": 0.95}
    domain = {"intra": 1.0, "cross": cross, "extra_attribute": 0.8, "subject": 0.7}
    report = {"prior_share": {"base": 1.0, "erased": 0.05}, "domain_share": domain, "category_share": domain}
    return {"seed": 3, **report, "subject_share": 0.2, **changes}


def test_a_good_report_says_so_and_what_comes_next():
    lines = verdict(a_report()).splitlines()

    assert lines[0].split() == ["share", "of", "the", "pictures", "should", "be", "is"]
    assert lines[2].split()[-4:] == ["at", "most", "0.20", "0.05"]
    assert lines[-2].startswith(f"All {len(CHECKS)} are as they should be")
    assert "gallery.py serve" in lines[-1] and not any("<-" in line for line in lines)


def test_what_is_not_as_it_should_be_is_marked_and_another_seed_is_advised():
    lines = verdict(a_report(prior_share={"base": 1.0, "erased": 0.5}, subject_share=0.0)).splitlines()

    marked = [line.split()[0] for line in lines if line.endswith("<-")]
    assert marked == ["erased,", "and"]
    assert lines[-2].startswith("2 of 11 are not") and "--seed 4" in lines[-1]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: " ".join(check.path))
def test_the_bounds_are_those_that_are_shown(check):
    report = {}
    place = report
    for name in check.path[:-1]:
        place = place.setdefault(name, {})
    for off, holds in ((0.0, True), (0.001, not check.below), (-0.001, check.below)):
        place[check.path[-1]] = check.bound + off
        assert check.holds(report) == (holds if off else True)


# ---------------------------------------------------------------- the terminal and the pictures


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_ends_in_a_line_and_its_time_counts():
    screen = Screen()
    terminal = Terminal(screen)

    with terminal.stage("first", "both") as bar:
        bar(0.5)
        bar(7)
    with pytest.raises(KeyError), terminal.stage("second", "both"):
        raise KeyError

    lines = screen.getvalue().split("\n")
    assert "[........" in lines[0] and lines[0].endswith("first                              done in 0 s")
    assert lines[1].endswith("stopped in 0 s")
    assert list(terminal.seconds) == ["both"]


def test_without_a_terminal_there_are_whole_lines_only():
    stream = io.StringIO()

    with Terminal(stream).stage("work") as bar:
        bar(0.5)

    assert stream.getvalue() == "  work                               done in 0 s\n"


def test_times_read_as_people_say_them():
    assert [clock(s) for s in (0, 59.4, 59.6, 125)] == ["0 s", "59 s", "1 min 00 s", "2 min 05 s"]


def test_sheet_thumbnail_and_plot(tmp_path):
    images = [Image.new("RGB", (64, 64), (255, 0, 0))] * 3

    sheet = make_sheet("Title", [("one\nmore", images), ("two", images[:1])])
    thumbnail = make_thumbnail(images)
    plot_losses(
        {"erase": {"prior": [1.0, 0.5], "total": [2.0, 1.0]}, "learn": {"total": [1.0]}}, tmp_path / "x.png"
    )

    colours = {colour for _, colour in sheet.getcolors(10**6)}
    assert (255, 0, 0) in colours and (0, 0, 0) not in colours
    assert thumbnail.size == (384, 384)
    assert Image.open(tmp_path / "x.png").size[0] > 1000
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


# ---------------------------------------------------------------- the whole job


@pytest.fixture
def tiny(host, tmp_path, monkeypatch):
    """Make the job tiny, and let it run in the host that is there."""
    folder = tmp_path / "workflows"
    folder.mkdir()
    for name, text in make_workflows(host.client.object_info(), SHORT).items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(scenarios, "FOLDER", folder)
    monkeypatch.setattr(scenarios, "LEAST", 5)
    monkeypatch.setattr(scenarios, "EACH", 1)
    monkeypatch.setattr(scenarios, "EACH_OF_ALL", 1)
    monkeypatch.setattr("tools.demo.measure.LEAST", 5)
    monkeypatch.setattr(demo, "HostProcess", lambda *_, **__: Borrowed(host))
    monkeypatch.setattr(demo, "FOLDER", folder)
    monkeypatch.setattr(demo, "PACK", tmp_path)
    monkeypatch.setattr(demo, "SHIPPED_LORA", tmp_path / "loras" / "domain.safetensors")
    return tmp_path


class Borrowed:
    """A running host that a `with` block does not stop."""

    def __init__(self, host):
        self.host = host

    def __enter__(self):
        return self.host

    def __exit__(self, *_):
        pass


def test_the_whole_job_writes_all_files(host, tiny):
    report = demo.run("", tiny / "out", 3, Terminal(io.StringIO()), ship=True)

    assert sorted(path.name for path in (tiny / "out").iterdir()) == [
        "domain.safetensors", "erased.safetensors", "gallery.png", "losses.png", "report.json",
        "subject.safetensors",
    ]  # fmt: skip
    assert json.loads((tiny / "out" / "report.json").read_text()) == report
    assert list(report) == [
        "seed", "seconds", "prior_share", "domain_share", "category_share", "subject_share", "versions",
        "device",
    ]  # fmt: skip
    assert set(report["seconds"]) == {
        "start", "source_images", "erase", "finetune", "draw", "measure", "subject", "total",
    }  # fmt: skip
    assert report["seed"] == 3 and report["versions"]["host"] and report["device"] == "cpu"
    assert "a sks face" in verdict(report)
    assert (tiny / "loras" / "domain.safetensors").exists() and (tiny / "docs" / "gallery.png").exists()
    shown = {path.stem for path in (tiny / "workflows").glob("*.jpg")}
    assert set(WORKFLOWS) - shown == {
        "06 a subject with the domain",
        "07 several categories",
        "09 compare methods",
    }


def test_a_refused_prompt_ends_in_one_line(tiny, monkeypatch, capsys):
    text = (tiny / "workflows" / "01 teach a domain.json").read_text()
    (tiny / "workflows" / "01 teach a domain.json").write_text(text.replace(f'"{DOMAIN}"', '"nothing"', 1))
    monkeypatch.setattr("sys.argv", ["demo", "--host", "", "--output", str(tiny / "out")])

    status = demo.main()

    assert status == 1
    said = capsys.readouterr().err
    assert said.startswith("gallery.py: ") and "nothing" in said and said.count("\n") == 1
    assert not (tiny / "out" / "report.json").exists()
