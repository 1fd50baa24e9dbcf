"""The shipped subgraphs, and the templates made with them: well formed, listed, and run in the real host."""

from __future__ import annotations

import json
import uuid
from itertools import combinations

import pytest

from gallery import PACK
from tests.tools.test_workflows import inside, overlap
from tools.host.graphs import GraphError, set_by_title, widget_slots, workflow_to_api
from tools.host.subgraphs import unpacked
from tools.make.blueprints import BLUEPRINTS, DRAW_FILE, TEACH_FILE, draw_in_a_domain
from tools.make.workflow_graph import Graph
from tools.make.workflow_parts import DOMAIN_LORA
from tools.make.workflows import FOLDER, SUBGRAPHS, make_blueprints, make_own_models, pack_version
from tools.make.workflows_for_own_models import OWN_MODELS

ENTRANCE, EXIT = -10, -20
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
DEMO_IMAGES = {"domain": "cyanotype", "category": "face", "count": 3, "seed": 0}


@pytest.fixture(scope="module")
def info(host):
    return host.client.object_info()


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=[*BLUEPRINTS, *OWN_MODELS])
def shipped(request):
    folder = SUBGRAPHS if request.param in BLUEPRINTS else FOLDER
    return read(folder / f"{request.param}.json")


def test_the_files_are_what_their_description_makes(info):
    for folder, made in ((SUBGRAPHS, make_blueprints(info)), (FOLDER, make_own_models(info))):
        for name, text in made.items():
            found = (folder / f"{name}.json").read_bytes()
            assert found == text.encode(), f"run tools.make.workflows for {name}"
    assert {path.stem for path in SUBGRAPHS.glob("*.json")} == set(BLUEPRINTS)


def test_the_host_lists_the_blueprints_of_the_pack(host):
    listed = host.client.json("/global_subgraphs").items()

    ours = {entry["name"]: key for key, entry in listed if entry["source"] == "custom_node"}
    assert ours.keys() == BLUEPRINTS.keys()
    for name, key in ours.items():
        data = host.client.json(f"/global_subgraphs/{key}")["data"]
        assert json.loads(data) == read(SUBGRAPHS / f"{name}.json")


def test_a_blueprint_is_one_node_and_its_definition():
    """Under the words that people search; the host shows category and description of the definition."""
    for name in BLUEPRINTS:
        found = read(SUBGRAPHS / f"{name}.json")
        [node], [definition] = found["nodes"], found["definitions"]["subgraphs"]
        assert node["type"] == definition["id"] == str(uuid.UUID(definition["id"]))
        assert node["title"] == definition["name"] and name.startswith(node["title"])
        assert definition["category"] == "DomainGallery" and len(definition["description"]) > 60
        assert found["extra"]["BlueprintDescription"] == definition["description"]
        assert "lora" in name.lower() and "style" in name.lower()


def test_inputs_and_outputs_are_those_of_the_definition(shipped):
    [definition] = shipped["definitions"]["subgraphs"]
    [node] = [node for node in shipped["nodes"] if node["type"] == definition["id"]]

    assert [(i["name"], i["type"]) for i in node["inputs"]] == [
        (i["name"], i["type"]) for i in definition["inputs"]
    ]
    assert [(o["name"], o["type"]) for o in node["outputs"]] == [
        (o["name"], o["type"]) for o in definition["outputs"]
    ]
    widgets = [entry for entry in node["inputs"] if "widget" in entry]
    assert len(widgets) == len(node["widgets_values"]) > 4
    for node in [*shipped["nodes"], *definition["nodes"]]:
        assert node["type"] == "MarkdownNote" or {"cnr_id", "ver"} <= node["properties"].keys()


def test_links_of_a_definition_join_sockets_of_one_type(shipped):
    [definition] = shipped["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in definition["nodes"]}
    ends = {ENTRANCE: definition["inputs"], EXIT: definition["outputs"]}

    assert not set(nodes) & {node["id"] for node in shipped["nodes"]}
    for link in definition["links"]:
        origin, target = link["origin_id"], link["target_id"]
        source = (ends.get(origin) or nodes[origin]["outputs"])[link["origin_slot"]]
        sink = (ends.get(target) or nodes[target]["inputs"])[link["target_slot"]]
        assert source["type"] == link["type"] and link["type"] in sink["type"].split(",")
        assert link["id"] in source.get("linkIds", source.get("links", ()))
        assert link["id"] in sink.get("linkIds", [sink.get("link")])
    assert all(entry["linkIds"] for entry in (*definition["inputs"], *definition["outputs"]))


def test_what_a_widget_outside_begins_with_is_what_is_inside(shipped, info):
    [definition] = shipped["definitions"]["subgraphs"]
    [node] = [node for node in shipped["nodes"] if node["type"] == definition["id"]]
    names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    given = dict(zip(names, node["widgets_values"], strict=True))
    nodes, seen = {node["id"]: node for node in definition["nodes"]}, set()

    for link in definition["links"]:
        entry = definition["inputs"][link["origin_slot"]] if link["origin_id"] == ENTRANCE else {}
        if entry.get("name") in given:
            target = nodes[link["target_id"]]
            slots = [name for name, _ in widget_slots(info[target["type"]], target["widgets_values"])]
            place = slots.index(target["inputs"][link["target_slot"]]["widget"]["name"])
            assert target["widgets_values"][place] == given[entry["name"]]
            seen.add(entry["name"])
    assert seen == set(names)


def test_every_node_of_a_definition_is_known_and_has_all_its_widgets(shipped, info):
    [definition] = shipped["definitions"]["subgraphs"]

    for node in definition["nodes"]:
        assert len(node["widgets_values"]) == len(widget_slots(info[node["type"]])), node["type"]


def test_nothing_overlaps(shipped):
    """Neither outside nor inside."""
    for graph in (shipped, *shipped["definitions"]["subgraphs"]):
        boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
        boxes = [(x, y - 30, width, height + 30) for x, y, width, height in boxes]
        frames = [tuple(group["bounding"]) for group in graph["groups"]]
        assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
        assert not [pair for pair in combinations(frames, 2) if overlap(*pair)]
        assert all(inside(box, frame) for box in boxes for frame in frames if overlap(box, frame))


@pytest.mark.parametrize("name", OWN_MODELS)
def test_a_template_for_an_own_model_is_small_and_leaves_numbers_to_it(name, info):
    """Two choices, a word and a name are left; ten nodes at most, which fit on a screen at 60 %."""
    workflow = read(FOLDER / f"{name}.json")
    prompt = workflow_to_api(unpacked(workflow), info)
    by_title = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}

    assert len(workflow["nodes"]) <= 10
    right = max(node["pos"][0] + node["size"][0] for node in workflow["nodes"])
    bottom = max(node["pos"][1] + node["size"][1] for node in workflow["nodes"])
    assert right < 1500 / 0.6 and bottom < 850 / 0.6
    assert by_title["Load Checkpoint"]["ckpt_name"] == by_title["Load Domain Images"]["folder"] == ""
    for title, numbers in (
        ("Domain Source Images", ("count", "width", "height", "steps", "cfg")),
        ("1  Erase Prior Attributes", ("steps", "learning_rate")),
        ("2  Train Domain LoRA", ("steps", "learning_rate")),
        ("Domain Training Options", ("batch_size", "accumulation")),
        ("Draw: domain", ("steps", "cfg")),
    ):
        assert [by_title[title][name] for name in numbers] == [0] * len(numbers), title
    assert by_title["Domain Training Options"]["preset"] == "paper"
    words = workflow["nodes"][0]["widgets_values"][0]
    assert name.split()[-1] in ("1.5", "SDXL") and words.startswith("# ") and "{" not in words


@pytest.mark.timeout(900)
def test_a_template_for_an_own_model_runs(host, info):
    """On the demo model, and but for lengths and counts as shipped: stages, file and picture."""
    workflow = read(FOLDER / "00 train a style LoRA on SD 1.5.json")
    prompt = workflow_to_api(unpacked(workflow), info)
    node = {content["_meta"]["title"]: name for name, content in prompt.items()}
    prompt[node["Load Checkpoint"]] |= {"class_type": "DomainGalleryLoadDemo", "inputs": {}}
    prompt[node["Load Domain Images"]] |= {"class_type": "DomainGalleryDemoImages", "inputs": DEMO_IMAGES}
    set_by_title(prompt, "Domain Source Images", count=4)
    for title in ("1  Erase Prior Attributes", "2  Train Domain LoRA"):
        set_by_title(prompt, title, steps=2)
    set_by_title(prompt, "Save Trained LoRA", name="subgraphs/taught")

    outputs = host.client.run(prompt, workflow=workflow, timeout=800)

    erased, learned = (outputs[node[t]] for t in ("1  Erase Prior Attributes", "2  Train Domain LoRA"))
    assert set(erased["losses"][0]) == {"prior", "disentanglement", "erasure", "total"}
    assert set(learned["losses"][0]) == {"target", "prior", "disentanglement", "similarity", "total"}
    assert len(outputs[node["Before and after"]]["images"]) == 1
    assert (host.output / "loras" / "subgraphs" / "taught_00001_.safetensors").is_file()
    assert "taught_00001_.safetensors" in outputs[node["The file"]]["text"][0]


def test_a_drawing_in_a_domain_runs(host, info):
    """With the LoRA of the pack; what is typed outside comes in, and the model says the rest."""
    draw = draw_in_a_domain(info, pack_version())
    graph = Graph("test", {**info, draw.id: draw.as_node()}, pack_version())
    model = graph.node("DomainGalleryLoadDemo")
    drawn = graph.node(
        draw.id, model=model["model"], clip=model["clip"], vae=model["vae"], lora_name=DOMAIN_LORA,
        prompt="a sks car by the sea", category="car", mode="VN-N", enhancement=0.5,
    )  # fmt: skip
    graph.node("SaveImage", title="Pictures", images=drawn["image"], filename_prefix="subgraphs/drawn")
    prompt = workflow_to_api(unpacked(graph.to_json()), info)

    by_title = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    sampler = by_title["Draw: in the domain"]
    assert (sampler["mode"], sampler["enhancement"]) == ("VN-N", 0.5)
    assert by_title["Prompt"]["text"] == "a sks car by the sea"
    assert (by_title["Domain Prompts"]["category"], by_title["Domain Prompts"]["identifier"]) == (
        "car",
        "sks",
    )
    outputs = host.client.run(prompt, timeout=300)
    assert [len(each["images"]) for each in outputs.values() if "images" in each] == [1]


def inner(nodes, links, inputs, outputs, id="inner"):
    """Return the definition of a subgraph."""
    return {
        "id": id,
        "nodes": nodes,
        "links": [
            dict(
                zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True)
            )
            for link in links
        ],
        "inputs": [{"name": name, "type": "X"} for name in inputs],
        "outputs": [{"name": name, "type": "X"} for name in outputs],
    }


def node(id, type, inputs=(), values=(), widgets=()):
    slots = [
        {"name": name, "type": "X", "link": link} | ({"widget": {"name": name}} if name in widgets else {})
        for name, link in inputs
    ]
    return {"id": id, "type": type, "inputs": slots, "outputs": [{}], "widgets_values": [*values], "mode": 0}


def test_subgraphs_in_subgraphs_are_unpacked_and_widgets_come_in():
    """An output of an outer one may be that of an inner one, and a value passes through both."""
    leaf = inner(
        [node(5, "Leaf", [("a", 1), ("text", 2)], ["own"], ["text"])],
        [(1, ENTRANCE, 0, 5, 0, "X"), (2, ENTRANCE, 1, 5, 1, "X"), (3, 5, 0, EXIT, 0, "X")],
        ["a", "text"], ["out"], "leaf",
    )  # fmt: skip
    branch = inner(
        [node(7, "leaf", [("a", 1), ("text", 2)], ["not this"], ["text"])],
        [(1, ENTRANCE, 0, 7, 0, "X"), (2, ENTRANCE, 1, 7, 1, "X"), (3, 7, 0, EXIT, 0, "X")],
        ["a", "text"], ["out"], "branch",
    )  # fmt: skip
    workflow = {
        "nodes": [
            node(1, "Source"),
            node(2, "branch", [("a", 1), ("text", None)], ["typed"], ["text"]),
            node(3, "Sink", [("b", 2)]),
        ],
        "links": [[1, 1, 0, 2, 0, "X"], [2, 2, 0, 3, 0, "X"]],
        "definitions": {"subgraphs": [leaf, branch]},
    }
    info = {
        "Source": {"input": {}},
        "Leaf": {"input": {"required": {"a": ["X"], "text": ["STRING", {}]}}},
        "Sink": {"input": {"required": {"b": ["X"]}}},
    }

    prompt = workflow_to_api(unpacked(workflow), info)

    assert {name: content["inputs"] for name, content in prompt.items()} == {
        "1": {},
        "2:7:5": {"a": ["1", 0], "text": "typed"},
        "3": {"b": ["2:7:5", 0]},
    }


def test_an_input_to_which_nothing_is_given_keeps_what_is_inside():
    leaf = inner(
        [node(5, "Leaf", [("a", 1), ("text", 2)], ["own"], ["text"])],
        [(1, ENTRANCE, 0, 5, 0, "X"), (2, ENTRANCE, 1, 5, 1, "X")],
        ["a", "text"], [], "leaf",
    )  # fmt: skip
    workflow = {"nodes": [node(1, "leaf")], "links": [], "definitions": {"subgraphs": [leaf]}}
    info = {"Leaf": {"input": {"required": {"a": ["X"], "text": ["STRING", {}]}}}}

    assert workflow_to_api(unpacked(workflow), info)["1:5"]["inputs"] == {"text": "own"}


def test_a_subgraph_in_itself_is_refused():
    loop = inner([node(5, "loop")], [], [], [], "loop")
    workflow = {"nodes": [node(1, "loop")], "links": [], "definitions": {"subgraphs": [loop]}}

    with pytest.raises(GraphError, match="in itself"):
        unpacked(workflow)


def test_the_names_of_the_blueprints_are_those_that_the_documents_say():
    page = (PACK / "README.md").read_text("utf-8")

    assert f"*{TEACH_FILE}*" in page and f"*{DRAW_FILE}*" in page
