"""The host's pages in a real Chromium: templates open without red nodes, one runs, help pages are shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from gallery import PACK

TEMPLATES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
CHROMIUM = os.environ.get("CHROMIUM_PATH") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: set CHROMIUM_PATH")


@pytest.fixture(scope="module")
def page(host) -> Iterator:
    """Open the host's page and wait until its nodes are known."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.set_default_timeout(120_000)
        page.goto(host.address)
        page.wait_for_function(
            "() => window.app?.graph && window.LiteGraph?.registered_node_types['DomainGalleryTrain']"
        )
        yield page
        browser.close()


def open_template(page, name: str) -> dict[str, int]:
    """Open a template from where the template browser gets it; return how many nodes it has and lacks."""
    return page.evaluate(
        """async ([url, name]) => {
            const answer = await fetch(url)
            if (!answer.ok) throw new Error(`${url}: ${answer.status}`)
            await window.app.loadGraphData(await answer.json(), true, true, name)
            const nodes = window.app.graph.nodes
            const known = window.LiteGraph.registered_node_types
            const missing = nodes.filter(n => n.has_errors || !(n.type in known)).map(n => n.type)
            return { nodes: nodes.length, missing: missing }
        }""",
        [f"/api/workflow_templates/domaingallery/{quote(name)}.json", name],
    )


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
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    page.wait_for_function(
        "() => window.app.graph.nodes.filter(n => n.type === 'SaveImage').every(n => n.imgs?.length > 0)"
    )
    page.screenshot(path=tmp_path / "02.png")

    assert (tmp_path / "02.png").stat().st_size > 20_000


def test_help_pages_are_served_for_every_node(host, page):
    for path in sorted((PACK / "web" / "docs").glob("*.md")):
        answer = page.request.get(f"{host.address}/extensions/domaingallery/docs/{path.name}")
        assert answer.ok
        assert answer.text() == path.read_text(encoding="utf-8")
