"""Show a template on the host's page and picture it once it has run:
python -m tools.host.page --host COMFYUI "01 teach a domain" teach.png
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def chromium() -> str | None:
    """Return the path of a Chromium: of CHROMIUM_PATH, or the first that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def open_page(address: str) -> Iterator[Any]:
    """Give the host's page, once its nodes are known."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_function(
            "() => window.app?.graph && window.LiteGraph?.registered_node_types['DomainGalleryTrain']"
        )
        yield page
        browser.close()


def open_template(page: Any, name: str) -> dict[str, Any]:
    """Open a template from where the template browser gets it; return its `nodes` and those `missing`."""
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


def run_template(page: Any, path: Path, *, timeout: float = 120.0) -> None:
    """Queue what is open, wait until every saved picture shows, and write a screenshot of all of it."""
    page.keyboard.press("Escape")  # closes what the page greets a newcomer with
    fit_view(page)
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    page.wait_for_function(
        "() => window.app.graph.nodes.filter(n => n.type === 'SaveImage').every(n => n.imgs?.length > 0)",
        timeout=timeout * 1000,
    )
    page.set_viewport_size(
        {"width": 3200, "height": 1800}
    )  # the page writes no text on nodes that it shows small
    fit_view(page)
    page.screenshot(path=path)


def fit_view(page: Any) -> None:
    """Show all nodes; the view glides there, and pictures are loaded when they come into it."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    time.sleep(1.5)


def main() -> None:
    from .process import HostProcess

    parser = argparse.ArgumentParser(prog="tools.host.page", description=__doc__)
    parser.add_argument("--host", required=True, help="folder of ComfyUI")
    parser.add_argument("template", help="name of a workflow, without .json")
    parser.add_argument("picture", type=Path, help="file for the screenshot")
    arguments = parser.parse_args()
    with HostProcess(arguments.host) as host, open_page(host.address) as page:
        print(open_template(page, arguments.template))
        run_template(page, arguments.picture, timeout=1200.0)


if __name__ == "__main__":
    main()
