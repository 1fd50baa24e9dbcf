"""The host's pages in a real Chromium: templates open without red nodes, one runs, help pages are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from gallery import PACK
from tools.host.graphs import workflow_to_api
from tools.host.page import chromium, open_page, open_template, run_template

TEMPLATES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium found: set CHROMIUM_PATH")


@pytest.fixture(scope="module")
def page(host) -> Iterator:
    with open_page(host.address) as page:
        yield page


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_without_a_red_node(page, name):
    opened = open_template(page, name)

    assert opened["nodes"] > 5
    assert opened["missing"] == []
    assert page.locator(".p-dialog:has-text('missing')").count() == 0


def test_the_template_browser_lists_every_template(host, page):
    listed = page.evaluate("async () => (await fetch('/api/workflow_templates')).json()")

    assert sorted(listed["domaingallery"]) == TEMPLATES
    for name in TEMPLATES:
        answer = page.request.get(f"{host.address}/api/workflow_templates/domaingallery/{quote(name)}.jpg")
        assert answer.headers["content-type"] == "image/jpeg"


def test_a_template_runs_when_queued_on_the_page(page, tmp_path: Path):
    open_template(page, "02 same category")
    run_template(page, tmp_path / "02.png")

    assert (tmp_path / "02.png").stat().st_size > 20_000


def test_help_pages_are_served_for_every_node(host, page):
    for path in sorted((PACK / "web" / "docs").glob("*.md")):
        answer = page.request.get(f"{host.address}/extensions/domaingallery/docs/{path.name}")
        assert answer.ok
        assert answer.text() == path.read_text(encoding="utf-8")


def test_the_page_sends_what_the_tools_send(host, page):
    """Choices with inputs of their own and inputs that grow keep their values and links on the page."""
    name = "09 compare methods"
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    open_template(page, name)

    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")

    expected = workflow_to_api(workflow, host.client.object_info())
    assert sent.keys() == expected.keys()
    for node, content in expected.items():
        assert (sent[node]["class_type"], sent[node]["inputs"]) == (content["class_type"], content["inputs"])


def test_training_nodes_have_a_button_to_stop_and_keep_and_no_other_has(page):
    open_template(page, "01 teach a domain")

    buttons = page.evaluate(
        """() => window.app.graph.nodes.flatMap(
            n => (n.widgets ?? []).filter(w => w.name === "stop and keep").map(() => n.type))"""
    )
    sizes = page.evaluate(
        """() => window.app.graph.serialize().nodes.filter(n => n.type === "DomainGalleryTrain")
            .map(n => n.widgets_values)"""
    )

    assert sorted(buttons) == ["DomainGalleryErase", "DomainGalleryTrain"]
    assert sizes == [[120, 0.002, 2, "fixed"]], "the button is no value of the workflow"


def test_the_button_says_that_nothing_trains(page):
    open_template(page, "01 teach a domain")

    page.evaluate(
        """() => window.app.graph.nodes.find(n => n.type === "DomainGalleryTrain").widgets
            .find(w => w.name === "stop and keep").callback()"""
    )

    page.wait_for_selector("text=does not train at the moment")
