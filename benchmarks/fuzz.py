"""Feed all nodes, and the files that they read, with hostile values: python -m benchmarks.fuzz --host COMFYUI

A case ends with success, or with an error of the pack's own kinds that says what was expected, what came, and
what to do; anything else is printed. Nothing may take 20 seconds, or 400 MB. Exit 1 where one ends otherwise.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

import tests.nodes.fuzz.values  # noqa: F401  before the host's own `tests` can be found
from benchmarks.unet_denoiser import find_host
from tools.host.load_pack import load_pack

#: A training takes a hundred times as long as a look at options; so many cases of it for one of others.
SLOW = {"DomainGalleryErase": 0.4, "DomainGalleryTrain": 0.4, "DomainGalleryPersonalize": 0.4,
        "DomainGallerySubject": 0.4, "DomainGalleryBaseline": 0.4,
        "checkpoint": 0.4, "sound checkpoint of something else": 0.4}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the nodes or files whose name has this in it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pack = load_pack(find_host(arguments.host))
    logging.disable(logging.ERROR)
    sys.modules["comfy.utils"].PROGRESS_BAR_ENABLED = False
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        sys.modules["folder_paths"].set_output_directory(str(output))
        sys.modules["folder_paths"].set_input_directory(f"{folder}/input")
        from tests.nodes.fuzz.files import Files, picture
        from tests.nodes.fuzz.graphs import graphs, look
        from tests.nodes.fuzz.running import Fuzz, attempts

        Path(folder, "input/pictures").mkdir(parents=True)
        Path(folder, "input/pictures/one.png").write_bytes(picture("PNG", "RGB", (64, 64)))
        fuzz = Fuzz(lambda name: sys.modules[f"{pack.__name__}.{name}"])
        tried = {name: (fuzz.cases(name), fuzz.run) for name in fuzz.classes}
        tried |= Files(fuzz, output).kinds() | {"graph": (graphs(fuzz), lambda graph: look(fuzz, graph))}
        chosen = {name: both for name, both in tried.items() if arguments.only in name}
        shares = {name: SLOW.get(name, 1.0) for name in chosen}
        ends: Counter[str] = Counter()
        problems: Counter[str] = Counter()
        for name, (cases, run) in chosen.items():
            count = int(arguments.inputs * shares[name] / sum(shares.values())) + 1
            found = attempts(cases, run, count, arguments.seed)
            ends.update(found[0])
            problems.update(found[1])
            print(f"{name}: {dict(found[0])}, others {found[1].total()}", flush=True)
            for problem, times in found[1].most_common():
                print(f"  {times} x {problem}", flush=True)
    print(f"{ends.total()} inputs: {dict(ends.most_common())}; others {problems.total()}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
