"""Measure a card: python -m benchmarks.gpu --host COMFYUI --out gpu.md

SD1.5 at 512 x 512 pixels, SDXL and Flux.1 dev at 1024 x 1024 are made of the host's own classes with random
weights. Both stages are trained as the nodes do it, and an image is drawn as Domain KSampler does it: weights
in each precision, gradient checkpointing and offloading automatic, off and on, compiled or not. A row has
seconds of a step (the median after a first one), the most that torch allocated in it, and what the dry run
estimated of both before it; of sampling, seconds and rows of a step with enhancement over those without. A
batch has 4 images. For Flux it has one, without the similarity term, as in the preset "low memory", whose
step has four such batches.

Rows begin in order of importance, each if there is time for it by what others took; at the end of the time
the row that runs is cut. What was left out is listed; with more --minutes there is more.
A row that runs out of memory says so. The tables, and all figures as JSON beside them, are written after
every row. Exit 1 where a row failed for another reason than memory, or none was measured.

--thin measures small models, which tells nothing but that all of this works, also without a card.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.random_training import Pack
from benchmarks.unet_denoiser import find_host

from .card.measuring import Workbench
from .card.report import Report, card
from .card.rows import Result, Row, ordered, predicted
from .card.sizes import SIZES, THIN

log = logging.getLogger("domaingallery")


class Bench:
    """Measure rows one after the other until the time is up.

    Attributes:
        running: the row that is being measured.
    """

    def __init__(self, workbench: Workbench, report: Report, until: float) -> None:
        self.workbench, self.report, self.until = workbench, report, until
        self.running: Row | None = None

    def go(self) -> None:
        """Measure what there is time for, and note what there is none for."""
        for row in list(self.report.left):
            if self.time_for(row):
                self.running = row
                result = self.measured(row)
                self.running = None
                self.report.add(result)
                said = f"{result.values['seconds']:.3g} s a step" if result.values else result.outcome
                print(f"{row}: {said}", flush=True)
            else:
                self.report.pass_over(row)
        self.report.write()

    def time_for(self, row: Row) -> bool:
        """Tell whether a row should be done before the time is up."""
        now = time.perf_counter()
        needs = predicted(row, self.report.results, self.workbench.sizes)
        return now < self.until and now + needs <= self.until

    def measured(self, row: Row) -> Result:
        """Measure a row; whatever goes wrong in it is its outcome."""
        began, result = time.perf_counter(), Result(row)
        try:
            result.values = self.workbench.measure(row, self.until)
        except Exception as error:
            result.outcome = self.workbench.unfit(error)
            if not result.outcome:
                result.outcome, result.failed = f"failed: {in_a_line(error)}", True
                log.warning("%s failed", row, exc_info=error)
        if result.outcome:
            self.workbench.drop()
        else:
            self.workbench.give_back()
        result.took = time.perf_counter() - began
        return result

    def cut(self) -> None:
        """End the program with what is known; whatever runs cannot be told to stop."""
        self.report.cut(self.running)
        print(f"the time is up\n{self.report.markdown()}", flush=True)
        os._exit(status(self.report.results))


def in_a_line(error: BaseException) -> str:
    """Return the kind of an error and the beginning of its text."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:160]


def status(results: Sequence[Result]) -> int:
    """Return 0 where something was measured and nothing failed."""
    return int(any(result.failed for result in results) or not any(result.values for result in results))


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--out", type=Path, help="file for the tables; JSON is written beside it")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it ends in any case")
    parser.add_argument("--thin", action="store_true", help="small models, also on a CPU")
    options = parser.parse_args()
    sizes, until = THIN if options.thin else SIZES, began + 60 * options.minutes
    pack = Pack(find_host(options.host))
    workbench = Workbench(pack, sizes, compiler="eager" if options.thin else "inductor")
    if workbench.device.type == "cpu" and not options.thin:
        parser.error("expected a card that torch computes on, got none; --thin tries the bench without one")
    report = Report(options.out, card(workbench.device), sizes, ordered(sizes))
    report.write()
    bench = Bench(workbench, report, until)
    watchdog = threading.Timer(max(0.0, until - time.perf_counter()), bench.cut)
    watchdog.daemon = True
    watchdog.start()
    try:
        bench.go()
    finally:
        watchdog.cancel()
        watchdog.join()  # which never returns if the time was up just before
    print(report.markdown())
    return status(report.results)


if __name__ == "__main__":
    sys.exit(main())
