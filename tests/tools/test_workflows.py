"""The shipped workflows: made from their description, well formed, and run in the real host."""

from __future__ import annotations

import json
import re
import uuid
from itertools import combinations, pairwise

import pytest

from gallery import HOST_VERSION, PACK
from tools.host.graphs import widget_slots, workflow_to_api
from tools.make.workflow_graph import Graph, GraphError
from tools.make.workflow_parts import DOMAIN_LORA
from tools.make.workflows import FOLDER, SHORT, WORKFLOWS, make_workflows, pack_version
from tools.make.workflows_for_own_models import OWN_MODELS

LORAS = PACK / "domaingallery_core" / "sketchbook" / "loras"
NOTES = {"Note", "MarkdownNote"}


@pytest.fixture(scope="module")
def info(host):
    return host.client.object_info()


@pytest.fixture(params=WORKFLOWS)
def shipped(request):
    return json.loads((FOLDER / f"{request.param}.json").read_text(encoding="utf-8"))


def nodes_but_notes(workflow):
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def test_the_files_are_what_their_description_makes(info):
    made = make_workflows(info)

    for name, text in made.items():
        assert (FOLDER / f"{name}.json").read_bytes() == text.encode(), f"run tools.make.workflows for {name}"
    assert {path.stem for path in FOLDER.glob("*.json")} == {*made, *OWN_MODELS}


def test_the_form_is_that_of_a_saved_workflow(shipped):
    assert shipped["version"] == 0.4
    assert str(uuid.UUID(shipped["id"])) == shipped["id"]
    ids = [node["id"] for node in shipped["nodes"]]
    assert len(set(ids)) == len(ids) and max(ids) == shipped["last_node_id"]
    assert [link[0] for link in shipped["links"]] == list(range(1, shipped["last_link_id"] + 1))
    assert not set(shipped) & {"models", "definitions", "requiresCustomNodes"}


def test_the_titles_are_those_of_the_template_browser(host):
    assert sorted(host.client.templates()["domaingallery"]) == sorted([*WORKFLOWS, *OWN_MODELS])


def test_nodes_say_where_they_come_from(shipped):
    for node in nodes_but_notes(shipped):
        ours = node["type"].startswith("DomainGallery")
        assert node["properties"] == {
            "cnr_id": "domaingallery" if ours else "comfy-core",
            "ver": pack_version() if ours else HOST_VERSION,
            "Node name for S&R": node["type"],
        }


def test_every_node_is_known_and_has_all_its_widgets(shipped, info):
    for node in nodes_but_notes(shipped):
        slots = widget_slots(info[node["type"]], node["widgets_values"])
        assert len(node["widgets_values"]) == len(slots), node["type"]


def test_links_join_sockets_of_one_type(shipped):
    nodes = {node["id"]: node for node in shipped["nodes"]}

    for number, origin, slot, target, place, kind in shipped["links"]:
        source, sink = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in source["links"] and sink["link"] == number
        assert source["type"] == kind and kind in sink["type"].split(",")
    ends = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(ends) == [link[0] for link in shipped["links"]]


def test_titles_name_one_node_each(shipped):
    titles = [node["title"] for node in shipped["nodes"] if "title" in node]

    assert len(set(titles)) == len(titles)


def test_notes_explain(shipped):
    notes = [node["widgets_values"][0] for node in shipped["nodes"] if node["type"] in NOTES]

    assert notes and notes[0].startswith("# ")
    assert not any(re.search(r"[{}]", note) for note in notes)


def test_nothing_overlaps(shipped):
    """Neither nodes, with their titles of 30 pixels, nor frames; and each node is in one frame at most."""
    boxes = [(*node["pos"], *node["size"]) for node in shipped["nodes"]]
    boxes = [(x, y - 30, width, height + 30) for x, y, width, height in boxes]
    frames = [tuple(group["bounding"]) for group in shipped["groups"]]

    assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
    assert not [pair for pair in combinations(frames, 2) if overlap(*pair)]
    assert all(inside(box, frame) for box in boxes for frame in frames if overlap(box, frame))


def test_links_lead_to_the_right(shipped):
    """No node is left of one that it needs."""
    nodes = {node["id"]: node for node in shipped["nodes"]}

    backwards = [
        (nodes[origin]["type"], nodes[target]["type"])
        for _, origin, _, target, _, _ in shipped["links"]
        if nodes[origin]["pos"][0] > nodes[target]["pos"][0]
    ]
    assert not backwards


@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_runs(host, info, name):
    """As shipped, but for lengths and counts."""
    workflow = json.loads(make_workflows(info, SHORT)[name])
    prompt = workflow_to_api(workflow, info)

    outputs = host.client.run(prompt, workflow=workflow, timeout=500)

    saved = [node for node, content in prompt.items() if content["class_type"] == "SaveImage"]
    assert saved and all(len(outputs[node]["images"]) == 1 for node in saved)


def test_the_comparison_shows_every_method_and_what_each_cost(host, info):
    """Two grids: the category that was taught; another one, without and with enhancement."""
    workflow = json.loads(make_workflows(info, SHORT)["09 compare methods"])
    prompt = workflow_to_api(workflow, info)
    grids = [content["inputs"] for content in prompt.values() if content["class_type"] == "DomainGalleryGrid"]
    methods = ["DomainGallery", "DreamBooth", "DreamBooth LoRA", "DomainStudio", "Textual Inversion"]
    reports = [key for key in grids[0] if key.startswith("notes.")]

    assert [grid["columns"].splitlines() for grid in grids] == [["before", *methods], methods]
    assert [grid["rows"].splitlines() for grid in grids] == [["a sks face"], ["none", "V-uncond"]]
    assert len(reports) == 1 + len(methods)
    for name, drawn in (("none", 11), ("V-uncond", 5)):
        modes = [
            content["inputs"].get("mode", "none")
            for content in prompt.values()
            if "seed" in content["inputs"] and "latent_image" in content["inputs"]
        ]
        assert modes.count(name) == drawn


def test_only_numbers_differ_from_what_is_shipped(info):
    """So that the shortened workflows prove something about the shipped ones."""
    for (name, text), short in zip(
        make_workflows(info).items(), make_workflows(info, SHORT).values(), strict=True
    ):
        long_nodes, short_nodes = json.loads(text)["nodes"], json.loads(short)["nodes"]
        for a, b in zip(
            nodes_but_notes({"nodes": long_nodes}), nodes_but_notes({"nodes": short_nodes}), strict=True
        ):
            assert a["type"] == b["type"] and a["inputs"] == b["inputs"], name


def test_a_file_that_a_workflow_loads_comes_with_the_pack(shipped, info):
    listed = info["LoraLoaderModelOnly"]["input"]["required"]["lora_name"][0]
    wanted = [node["widgets_values"][0] for node in shipped["nodes"] if node["type"] == "LoraLoaderModelOnly"]

    assert set(wanted) <= set(listed)
    assert all((LORAS / name).is_file() for name in wanted)


def test_the_templates_that_draw_load_the_lora_of_the_pack():
    texts = {name: (FOLDER / f"{name}.json").read_text(encoding="utf-8") for name in WORKFLOWS}

    assert [name[:2] for name in texts if f'"{DOMAIN_LORA}"' in texts[name]] == ["02", "03", "04", "05", "08"]


def test_orders_follow_the_links(shipped):
    orders = {node["id"]: node["order"] for node in shipped["nodes"]}

    assert all(orders[origin] < orders[target] for _, origin, _, target, _, _ in shipped["links"])
    assert all(a < b for a, b in pairwise(sorted(orders.values())))


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"widht": 64}, "no input"),
        ({"width": 1}, "between 16 and"),
        ({"width": 10**6}, "between 16 and"),
    ],
)
def test_the_description_is_checked(info, inputs, complaint):
    graph = Graph("test", info, "0.1.0")

    with pytest.raises(GraphError, match=complaint):
        graph.node("EmptyLatentImage", **inputs)
    with pytest.raises(GraphError, match=r"not linked"):
        graph.node("VAEDecode")
    with pytest.raises(GraphError, match="is one of"):
        graph.node("DomainGalleryDemoImages", domain="blueprints")
    with pytest.raises(GraphError, match="no output"):
        graph.node("EmptyLatentImage")["image"]
    with pytest.raises(GraphError, match="no node"):
        graph.node("EmptyLatentImages")


def overlap(a, b):
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def inside(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[0] + a[2] <= b[0] + b[2] and a[1] + a[3] <= b[1] + b[3]
