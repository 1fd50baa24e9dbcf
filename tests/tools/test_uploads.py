"""Load Domain Images takes uploads on the host's page: files, a folder, what is dropped on the node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.host.page import chromium, open_page

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium found: set CHROMIUM_PATH")

ADD = """() => {
    window.app.graph.clear()
    const node = window.LiteGraph.createNode('DomainGalleryLoadImages')
    window.app.graph.add(node)
}"""
FOLDER = "() => window.app.graph.nodes[0].widgets.find(w => w.name === 'folder').value"
PRESS = "i => window.app.graph.nodes[0].widgets.filter(w => w.type === 'button')[i].callback()"
DROP = """async names => {
    const transfer = new DataTransfer()
    for (const name of names) {
        const canvas = new OffscreenCanvas(8, 8)
        canvas.getContext('2d').fillRect(0, 0, 8, 8)
        const bytes = await canvas.convertToBlob({ type: 'image/png' })
        transfer.items.add(new File([bytes], name, { type: 'image/png' }))
    }
    const node = window.app.graph.nodes[0]
    const event = new DragEvent('drop', { dataTransfer: transfer })
    return node.onDragOver(event) && node.onDragDrop(event)
}"""


@pytest.fixture(scope="module")
def page(host) -> Iterator:
    with open_page(host.address) as page:
        yield page


@pytest.fixture
def images(tmp_path) -> Path:
    """Return a folder with images, a caption, something else, and a folder in it."""
    folder = tmp_path / "Uploaded dogs"
    (folder / "inside").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "inside/c.png", ".hidden.png"):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / name)
    (folder / "a.txt").write_text("a dog")
    (folder / "notes.pdf").write_text("no image")
    return folder


def choose(page, button: int, chosen) -> str:
    """Press a button of a new node, choose files, and return the folder that is set afterwards."""
    page.evaluate(ADD)
    with page.expect_file_chooser() as chooser:
        page.evaluate(PRESS, button)
    return settled(page, page.evaluate(FOLDER), lambda: chooser.value.set_files(chosen))


def settled(page, before, change) -> str:
    change()
    page.wait_for_function(f"before => (({FOLDER})() ?? null) !== before", arg=before, timeout=30_000)
    return page.evaluate(FOLDER)


def uploaded(host, folder: str) -> list[str]:
    return sorted(path.name for path in (host.base / "input" / folder).iterdir())


def test_files_go_into_a_new_folder_that_is_chosen(host, page, images):
    first = choose(page, 0, [images / "a.png", images / "a.txt", images / "notes.pdf"])
    second = choose(page, 0, [images / "b.jpg"])

    assert uploaded(host, first) == ["a.png", "a.txt"] and uploaded(host, second) == ["b.jpg"]
    assert second == f"{first.removesuffix(' 2')} 2" or second.startswith("domain images")


def test_a_folder_keeps_its_name_and_gives_its_own_images(host, page, images):
    folder = choose(page, 1, images)

    assert folder == "Uploaded dogs"
    assert uploaded(host, folder) == ["a.png", "a.txt", "b.jpg"]
    assert choose(page, 1, images) == "Uploaded dogs 2"


def test_what_is_dropped_on_the_node_is_uploaded(host, page):
    page.evaluate(ADD)

    folder = settled(page, page.evaluate(FOLDER), lambda: page.evaluate(DROP, ["x.png", "y.png"]))

    assert uploaded(host, folder) == ["x.png", "y.png"]


def test_files_without_an_image_are_told_of_and_change_nothing(page, images):
    page.evaluate(ADD)
    before = page.evaluate(FOLDER)
    with page.expect_file_chooser() as chooser:
        page.evaluate(PRESS, 0)
    chooser.value.set_files([images / "notes.pdf"])

    page.wait_for_selector("text=There is no image among these files.")
    assert page.evaluate(FOLDER) == before


def test_the_buttons_are_no_values_of_the_node(page, images):
    """Neither in a workflow, whose values are known by their place, nor in a prompt."""
    page.evaluate(ADD)
    node = page.evaluate("() => window.app.graph.nodes[0].serialize()")
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")

    assert len(node["widgets_values"]) == 2 and node["widgets_values"][1] == 2048
    assert list(prompt[str(node["id"])]["inputs"]) == ["folder", "largest_side"]
