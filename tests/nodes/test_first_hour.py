"""A person in Chromium, from an empty canvas to the file of a LoRA, on a thin checkpoint and ten images."""

from __future__ import annotations

import pytest

from benchmarks.first_hour import NAME, TEMPLATES, prepare, strip, teach
from tools.host.page import chromium, open_page
from tools.host.process import HostProcess

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium found: set CHROMIUM_PATH")


@pytest.mark.timeout(1800)
def test_two_choices_a_word_and_a_name_teach_a_style(comfy, host_path, tmp_path):
    """No link is drawn; the template is legible as it opens, and says where the file is."""
    checkpoint = prepare(tmp_path / "base", "sd1")

    with (
        HostProcess(host_path, base_directory=tmp_path / "base", cpu=True) as host,
        open_page(host.address) as page,
    ):
        taught = teach(host, page, checkpoint, TEMPLATES["sd1"], tmp_path)

    assert (taught.choices, taught.words, taught.links, taught.clicks) == (2, 2, 0, 10)
    assert taught.nodes <= 10 and taught.scale >= 0.6
    [file] = taught.files
    assert file.name == f"{NAME}_00001_.safetensors" and file.stat().st_size > 10_000
    assert taught.said == str(file)
    strip(taught.looks, tmp_path / "strip.jpg")
    assert (tmp_path / "strip.jpg").stat().st_size > 100_000
