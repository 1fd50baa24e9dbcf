"""Workflows to prompts: the rules on small graphs, then the real host's nodes."""

from __future__ import annotations

from typing import Any

import pytest

from tools.host.graphs import GraphError, set_by_title, widget_slots, workflow_to_api

INFO: dict[str, Any] = {
    "Source": {"input": {"required": {"width": ["INT", {"default": 4}]}}, "display_name": "A Source"},
    "Noise": {
        "input": {
            "required": {
                "image": ["IMAGE"],
                "seed": ["INT", {"control_after_generate": True}],
                "cfg": ["FLOAT", {}],
            },
            "optional": {"name": [["a", "b"], {}], "text": ["STRING", {"forceInput": True}]},
        },
        "display_name": "Noise",
    },
    "Plain": {"input": {"required": {"seed": ["INT", {"control_after_generate": False}]}}},
    "Old": {"input": {"required": {"noise_seed": ["INT", {}], "steps": ["INT", {}]}}},
    "Load": {
        "input": {
            "required": {"image": [["x.png"], {"image_upload": True}]},
            "optional": {"scale": ["FLOAT", {"default": 1.0}]},
        }
    },
    "Choice": {
        "input": {
            "required": {
                "mode": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "none", "inputs": {"required": {}}},
                            {"key": "some", "inputs": {"required": {"count": ["INT", {}]}}},
                        ]
                    },
                ],
                "tags": ["COMBO", {"multiselect": True, "options": ["p", "q"]}],
            }
        }
    },
}


def node(
    id: int, type: str, values: Any = (), inputs: tuple = (), outputs: tuple = ("IMAGE",), **more: Any
) -> dict:
    return {
        "id": id,
        "type": type,
        "widgets_values": values if isinstance(values, dict) else list(values),
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": kind, "type": kind} for kind in outputs],
        **more,
    }


def graph(*nodes: dict, links: tuple = ()) -> dict:
    return {"version": 0.4, "nodes": list(nodes), "links": [list(link) for link in links]}


def inputs_of(id: int, *nodes: dict, links: tuple = ()) -> dict:
    return workflow_to_api(graph(*nodes, links=links), INFO)[str(id)]["inputs"]


def test_widgets_are_read_by_position_and_links_by_name():
    prompt = workflow_to_api(
        graph(
            node(1, "Source", [8]),
            node(2, "Noise", [7, "fixed", 1.5, "b"], (("image", "IMAGE", 5),), title="My noise"),
            links=([5, 1, 0, 2, 0, "IMAGE"],),
        ),
        INFO,
    )

    assert prompt == {
        "1": {"class_type": "Source", "inputs": {"width": 8}, "_meta": {"title": "A Source"}},
        "2": {
            "class_type": "Noise",
            "inputs": {"image": ["1", 0], "seed": 7, "cfg": 1.5, "name": "b"},
            "_meta": {"title": "My noise"},
        },
    }


def test_missing_widget_values_become_defaults():
    assert inputs_of(1, node(1, "Source")) == {"width": 4}
    assert inputs_of(2, node(2, "Noise", [3])) == {"seed": 3, "cfg": 0.0, "name": "a"}


def test_too_many_widget_values_are_an_error():
    with pytest.raises(GraphError, match="expected up to 1 widget values"):
        inputs_of(1, node(1, "Source", [1, 2]))


def test_a_seed_has_a_control_unless_it_says_that_it_has_none():
    assert inputs_of(1, node(1, "Plain", [5])) == {"seed": 5}
    assert inputs_of(1, node(1, "Old", [5, "randomize", 20])) == {"noise_seed": 5, "steps": 20}


def test_the_upload_button_takes_a_place_before_the_optional_widgets():
    assert inputs_of(1, node(1, "Load", ["x.png", "image", 0.5])) == {"image": "x.png", "scale": 0.5}


def test_a_dynamic_combo_brings_its_own_widgets():
    assert inputs_of(1, node(1, "Choice", ["none", ["p"]])) == {"mode": "none", "tags": {"__value__": ["p"]}}
    assert inputs_of(1, node(1, "Choice", ["some", 3, []])) == {
        "mode": "some",
        "mode.count": 3,
        "tags": {"__value__": []},
    }


def test_named_widget_values_are_read_by_name():
    assert inputs_of(1, node(1, "Old", {"steps": 9, "noise_seed": 1})) == {"noise_seed": 1, "steps": 9}


def test_a_linked_widget_keeps_its_place_among_the_values():
    values = inputs_of(
        2,
        node(1, "Source", outputs=("INT",)),
        node(2, "Noise", [7, "fixed", 1.5, "a"], (("seed", "INT", 1),)),
        links=([1, 1, 0, 2, 0, "INT"],),
    )

    assert values["seed"] == ["1", 0]
    assert values["cfg"] == 1.5


def test_notes_and_muted_nodes_are_left_out_with_their_links():
    prompt = workflow_to_api(
        graph(
            node(1, "Source", mode=2),
            node(2, "Noise", [1], (("image", "IMAGE", 1),)),
            node(3, "Note", ["a note"]),
            node(4, "MarkdownNote", ["# a note"]),
            links=([1, 1, 0, 2, 0, "IMAGE"],),
        ),
        INFO,
    )

    assert prompt.keys() == {"2"}
    assert "image" not in prompt["2"]["inputs"]


def test_reroutes_and_bypassed_nodes_are_seen_through():
    values = inputs_of(
        4,
        node(1, "Source"),
        node(2, "Reroute", (), (("", "*", 1),), ("IMAGE",)),
        node(3, "Noise", [1], (("text", "STRING", None), ("image", "IMAGE", 2)), mode=4),
        node(4, "Noise", [1], (("image", "IMAGE", 3),)),
        links=([1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 1, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"]),
    )

    assert values["image"] == ["1", 0]


def test_a_bypassed_node_without_a_fitting_input_gives_nothing():
    values = inputs_of(
        2,
        node(1, "Source", mode=4),
        node(2, "Noise", [1], (("image", "IMAGE", 1),)),
        links=([1, 1, 0, 2, 0, "IMAGE"],),
    )

    assert "image" not in values


def test_a_primitive_gives_its_value():
    values = inputs_of(
        2,
        node(1, "PrimitiveNode", [42, "fixed"], outputs=("INT",)),
        node(2, "Plain", [0], (("seed", "INT", 1),)),
        links=([1, 1, 0, 2, 0, "INT"],),
    )

    assert values == {"seed": 42}


def test_unknown_nodes_dangling_links_and_loops_are_errors():
    with pytest.raises(GraphError, match="'Nowhere'"):
        inputs_of(1, node(1, "Nowhere"))
    with pytest.raises(GraphError, match="link 9 leads nowhere"):
        inputs_of(1, node(1, "Noise", [1], (("image", "IMAGE", 9),)))
    with pytest.raises(GraphError, match="loop"):
        inputs_of(
            2,
            node(1, "Reroute", (), (("", "*", 1),)),
            node(2, "Noise", [1], (("image", "IMAGE", 1),)),
            links=([1, 1, 0, 1, 0, "IMAGE"],),
        )


def test_inputs_are_set_by_title():
    prompt = workflow_to_api(graph(node(1, "Source", [8]), node(2, "Plain", [0], title="Twice"),
                                   node(3, "Plain", [0], title="Twice")), INFO)  # fmt: skip

    set_by_title(prompt, "A Source", width=16)

    assert prompt["1"]["inputs"] == {"width": 16}
    with pytest.raises(GraphError, match="found 2"):
        set_by_title(prompt, "Twice", seed=1)
    with pytest.raises(GraphError, match="found 0"):
        set_by_title(prompt, "Nobody", seed=1)
    with pytest.raises(GraphError, match=r"no input \['height'\]"):
        set_by_title(prompt, "A Source", height=1)


def test_the_hosts_own_nodes_have_the_widgets_that_their_saved_graphs_show(host):
    info = host.client.object_info()

    def names(kind: str) -> list[str | None]:
        return [name for name, _ in widget_slots(info[kind])]

    assert names("KSampler") == ["seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"]
    assert names("LoadImage") == ["image", None]
    assert names("CLIPTextEncode") == ["text"]
    assert names("EmptyLatentImage") == ["width", "height", "batch_size"]
    assert names("LoraLoader") == ["lora_name", "strength_model", "strength_clip"]
    assert names("RandomNoise") == ["noise_seed", None]


def test_a_converted_graph_runs_in_the_real_host(host):
    workflow = graph(
        node(1, "EmptyImage", [8, 8, 1, 255]),
        node(2, "ImageInvert", (), (("image", "IMAGE", 1),), mode=4),
        node(3, "Reroute", (), (("", "*", 2),), ("IMAGE",)),
        node(4, "PreviewImage", (), (("images", "IMAGE", 3),), ()),
        node(5, "TestWait", [1, 6, "fixed", "well", "from a graph"], (), ("INT",), title="The wait"),
        node(6, "MarkdownNote", ["It only waits."], (), ()),
        links=([1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"]),
    )
    prompt = workflow_to_api(workflow, host.client.object_info())
    set_by_title(prompt, "The wait", note="set by title")

    outputs = host.client.run(prompt, workflow=workflow)

    assert len(outputs["4"]["images"]) == 1
    assert outputs["5"] == {"note": ["set by title"]}
