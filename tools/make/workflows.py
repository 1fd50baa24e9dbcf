"""Write workflows/*.json and subgraphs/*.json: python -m tools.make.workflows --host COMFYUI

All numbers for the demo model are in `DEMO`; the workflows are described in workflows_that_train.py,
workflows_that_draw.py and workflows_that_compare.py, the notes are in workflow_notes.py.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gallery import PACK

from .blueprints import BLUEPRINTS
from .workflow_graph import Graph
from .workflow_parts import Numbers, Workflow
from .workflows_for_own_models import OWN_MODELS
from .workflows_that_compare import compare
from .workflows_that_draw import choose_enhancement, extra_attributes, other_categories, same_category
from .workflows_that_train import joint, several_categories, teach, with_subject

FOLDER, SUBGRAPHS = PACK / "workflows", PACK / "subgraphs"

DEMO = Numbers(
    size=64,
    source_count=64,
    subject_source_count=40,
    rank=8,
    batch_size=4,
    denoise_steps=3,
    erase_steps=170,
    erase_rate=6e-3,
    train_steps=120,
    train_rate=2e-3,
    subject_steps=200,
    subject_rate=8e-3,
    subject_prior_weight=0.2,
    dreambooth_steps=120,
    dreambooth_rate=3e-4,
    dreambooth_lora_steps=120,
    dreambooth_lora_rate=4e-3,
    domainstudio_steps=60,
    domainstudio_rate=3e-4,
    inversion_steps=200,
    inversion_rate=5e-2,
    inversion_vectors=4,
    joint_steps=170,
    joint_rate=3e-3,
    joint_subject_weight=2.0,
    sampling_steps=10,
    sampler_name="dpmpp_2m",
    scheduler="normal",
    cfg=1.8,
    v_uncond=2.5,
    vn_n=2.5,
    strength_elsewhere=0.7,
    strength_of_subject=0.9,
    pictures=8,
    compared=4,
    compared_enhancement=1.0,
)
SHORT = replace(  # the same graphs in seconds, for tests
    DEMO, source_count=4, subject_source_count=4, erase_steps=2, train_steps=2, subject_steps=2,
    dreambooth_steps=2, dreambooth_lora_steps=2, domainstudio_steps=2, inversion_steps=2, joint_steps=2,
    sampling_steps=2, pictures=1, compared=1,
)  # fmt: skip


WORKFLOWS: dict[str, Callable[[Workflow], None]] = {
    "01 teach a domain": teach,
    "02 same category": same_category,
    "03 other categories": other_categories,
    "04 extra attributes": extra_attributes,
    "05 with a subject LoRA": with_subject,
    "06 a subject with the domain": joint,
    "07 several categories": several_categories,
    "08 choose an enhancement": choose_enhancement,
    "09 compare methods": compare,
}


def pack_version() -> str:
    with (PACK / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["version"]


def make_workflows(info: dict[str, Any], numbers: Numbers = DEMO) -> dict[str, str]:
    """Return the text of the file of each workflow for the demo model, by its title.

    Args:
        info: the host's answer to /object_info.
    """
    made = {}
    for name, describe in WORKFLOWS.items():
        graph = Workflow(name, info, pack_version(), numbers)
        describe(graph)
        made[name] = json.dumps(graph.to_json(), indent=1) + "\n"
    return made


def make_own_models(info: dict[str, Any]) -> dict[str, str]:
    """Return the text of each file of a workflow for one's own checkpoint, by its title."""
    made = {}
    for name, describe_own in OWN_MODELS.items():
        graph = Graph(name, info, pack_version())
        describe_own(graph)
        made[name] = json.dumps(graph.to_json(), indent=1) + "\n"
    return made


def make_blueprints(info: dict[str, Any]) -> dict[str, str]:
    """Return the text of each subgraph's file by its name."""
    version = pack_version()
    return {
        name: json.dumps(describe(info, version).blueprint(version), indent=1) + "\n"
        for name, describe in BLUEPRINTS.items()
    }


def main() -> None:
    from ..host.process import HostProcess

    parser = argparse.ArgumentParser(prog="tools.make.workflows", description="Write workflows/*.json.")
    parser.add_argument("--host", required=True, help="folder of ComfyUI, which tells the nodes' inputs")
    with HostProcess(parser.parse_args().host, cpu=True) as host:
        info = host.client.object_info()
    made_for = (make_workflows(info) | make_own_models(info), make_blueprints(info))
    for folder, made in zip((FOLDER, SUBGRAPHS), made_for, strict=True):
        folder.mkdir(exist_ok=True)
        for name, text in made.items():
            path = Path(folder, f"{name}.json")
            path.write_text(text, encoding="utf-8", newline="\n")
            print(path)


if __name__ == "__main__":
    main()
