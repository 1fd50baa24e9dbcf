"""Write locales/en/nodeDefs.json, of which translations are made:
python -m tools.make.locales --host COMFYUI

It has each text of the nodes that the host's page translates, by the keys that the page looks up. Then it
prints the keys that the other languages lack, and those that they have too many.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gallery import PACK

from ..host.graphs import DYNAMIC_COMBO

FOLDER = PACK / "locales"
LANGUAGES = ("zh", "zh-TW", "ja", "ko", "fr", "es", "ru", "de")
FILE = "nodeDefs.json"


def english(info: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of the pack's nodes; `info` is the host's answer to /object_info."""
    return {name: of_node(node) for name, node in sorted(info.items()) if name.startswith("DomainGallery")}


def of_node(node: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of a node: of the node itself, of its inputs by name, of its outputs by place."""
    tooltips: dict[str, set[str]] = {}
    for part in ("required", "optional"):
        for name, tooltip in of_inputs(node["input"].get(part, {})):
            tooltips.setdefault(name, set()).add(tooltip)
    inputs = {}
    for name, texts in tooltips.items():
        inputs[name.replace(".", "_")] = {"name": name.rpartition(".")[2]}
        if len(texts) == 1:  # the page looks up one for all choices
            inputs[name.replace(".", "_")]["tooltip"] = texts.pop()
    outputs = {
        str(i): {"name": name, "tooltip": tooltip}
        for i, (name, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
    }
    return {
        "display_name": node["display_name"], "description": node["description"],
        "inputs": inputs, "outputs": outputs,
    }  # fmt: skip


def of_inputs(specs: dict[str, list[Any]], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and tooltips, also of the inputs that belong to a choice."""
    for name, (kind, options) in specs.items():
        yield before + name, options.get("tooltip", "")
        if kind == DYNAMIC_COMBO:
            for choice in options["options"]:
                for part in choice["inputs"].values():
                    yield from of_inputs(part, f"{name}.")


def keys(texts: dict[str, Any], before: str = "") -> set[str]:
    """Return the path of each text."""
    found = set()
    for name, value in texts.items():
        found |= keys(value, f"{before}{name}.") if isinstance(value, dict) else {before + name}
    return found


def read(language: str) -> dict[str, Any]:
    """Return the texts of a language; none where it has no file."""
    path = FOLDER / language / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main() -> None:
    from ..host.process import HostProcess

    parser = argparse.ArgumentParser(prog="tools.make.locales", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", required=True, help="folder of ComfyUI, which tells the nodes' texts")
    with HostProcess(parser.parse_args().host, cpu=True) as host:
        texts = english(host.client.object_info())
    path = Path(FOLDER, "en", FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    for language in LANGUAGES:
        has = keys(read(language))
        print(language, "lacks", sorted(keys(texts) - has), "has too many", sorted(has - keys(texts)))


if __name__ == "__main__":
    main()
