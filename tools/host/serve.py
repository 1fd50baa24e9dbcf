"""Run the host with the pack in it until Ctrl-C: `python3 gallery.py serve`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gallery import PACK

from .process import HostError, HostProcess, free_port, port_is_free, stop_on_terminate

USUAL_PORT = 8188  # ComfyUI's own
BASE = PACK / "gallery-serve"


def chosen_port(wanted: int | None) -> int:
    """Return the wanted port, or else the usual one, or else any that is free.

    Raises:
        HostError: the wanted port is taken.
    """
    if wanted is None:
        return USUAL_PORT if port_is_free(USUAL_PORT) else free_port()
    if not 0 < wanted < 65536:
        raise HostError(f"port {wanted} does not exist; use one from 1 to 65535, or leave --port out")
    if not port_is_free(wanted):
        raise HostError(f"port {wanted} is in use; stop what uses it, name another, or leave --port out")
    return wanted


def models_of(host: Path, base: Path) -> tuple[str, ...]:
    """Return the arguments with which the host also lists the models of its own folder."""
    folders = sorted(path.name for path in (host / "models").glob("*") if path.is_dir())
    if not folders:
        return ()
    file = base / "extra_model_paths.yaml"  # JSON is YAML, too
    file.parent.mkdir(parents=True, exist_ok=True)
    names = {name: name for name in folders}
    file.write_text(json.dumps({"host": {"base_path": str(host / "models"), **names}}), encoding="utf-8")
    return "--extra-model-paths-config", str(file)


def serve(host: str, port: int | None, base: Path) -> int:
    """Run the host until it ends or the user stops it, and return the exit status."""
    arguments = models_of(Path(host).resolve(), base)
    process = HostProcess(host, base_directory=base, port=chosen_port(port), arguments=arguments)
    print("Starting ComfyUI with the pack", flush=True)
    try:
        with process:
            print(f"ComfyUI is at {process.address} (Ctrl-C stops it)", flush=True)
            print("Its templates, under domaingallery, are the place to begin.", flush=True)
            print(f"It keeps what it makes in {process.output} and its log in {process.log}", flush=True)
            process.wait()
            raise HostError(f"ComfyUI ended by itself\n{process.log_tail()}")
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.host.serve")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--base", type=Path, default=BASE)
    arguments = parser.parse_args()
    stop_on_terminate()
    try:
        return serve(arguments.host, arguments.port, arguments.base)
    except HostError as error:
        print(f"gallery.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
