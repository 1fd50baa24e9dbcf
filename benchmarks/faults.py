"""Disturb a small run again and again: python -m benchmarks.faults --host COMFYUI --minutes 30 [--all]

A run draws source images, encodes them, trains and saves. An error is raised at the n-th call of one of its
operations: a cancel, a want of memory, a full disk, any other. Up to three runs are disturbed one after the
other, at random places, and the next one ends in peace. It must give the LoRA of a run that nothing
disturbed, byte for byte; the MODEL must be as it was after each of them; nothing may be left over; and where
steps are lost the run must say so. With --all each (operation, n, fault) is tried once, in a run of its own.
Exit 1 at a difference.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.unet_denoiser import find_host
from tests.nodes.faults.injection import FAULTS  # before the host's own `tests` can be found
from tools.host.load_pack import load_pack

#: So many runs in a row are disturbed at most.
MOST_IN_A_ROW = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every place and fault once")
    parser.add_argument("--part", default="1/1", help="with --all: which part of them, such as 1/2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small models are no faster with more
    pack = load_pack(find_host(arguments.host))
    with tempfile.TemporaryDirectory() as folder:
        sys.modules["folder_paths"].set_output_directory(f"{folder}/output")
        from tests.nodes.faults.scenario import Bench

        bench = Bench(lambda name: sys.modules[f"{pack.__name__}.{name}"], Path(folder, "output"), setattr)
        places = bench.chains(list(FAULTS))
        part, parts = map(int, arguments.part.split("/"))
        calls = sum(bench.calls.values()) + sum(bench.calls_gone_on.values())
        print(f"{len(bench.calls)} operations, {calls} calls in two runs, {len(places)} triples", flush=True)
        if arguments.all:
            return report(bench, places[part - 1 :: parts], float("inf"))
        return report(bench, chains(places, random.Random(arguments.seed)), arguments.minutes * 60)


def chains(places: list[list[Any]], source: random.Random) -> Iterator[list[Any]]:
    """Yield random triples, one to three to be raised in one run after the other."""
    by_name: dict[str, list[Any]] = {}
    for chain in places:
        by_name.setdefault(chain[-1][0], []).append(chain[-1])
    names = sorted(by_name)
    while True:  # each operation as often, whether it is called once or a hundred times
        yield [source.choice(by_name[source.choice(names)]) for _ in range(source.randint(1, MOST_IN_A_ROW))]


def report(bench: Any, tried: Iterable[list[Any]], seconds: float) -> int:
    """Disturb runs for some time; print what differs, and the counts."""
    began, runs, differences = time.monotonic(), 0, 0
    faults: Counter[str] = Counter()
    for chain in tried:
        if time.monotonic() - began > seconds:
            break
        problems = bench.check(*chain)
        runs += len(chain) + 1
        faults.update(fault for _, _, fault in chain)
        differences += bool(problems)
        for problem in problems:
            print(f"{chain}: {problem}", flush=True)
    found = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
    minutes = (time.monotonic() - began) / 60
    print(f"{minutes:.1f} min, {faults.total()} faults ({found}), {runs} runs, differences {differences}")
    return 1 if differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
