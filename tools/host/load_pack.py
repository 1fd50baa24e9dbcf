"""Import the host and this pack in one process, as the host does it: by path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[2]


def enter_host(host: Path) -> None:
    """Put the host on the path, told to use the CPU where there is no GPU."""
    sys.path.insert(0, str(host))
    sys.argv = [sys.argv[0]] if torch.cuda.is_available() else [sys.argv[0], "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()


def load_pack(host: Path) -> ModuleType:
    """Return the pack as a package, loaded once; its modules are `<name>.nodes` and so on."""
    name = ROOT.as_posix().replace(".", "_x_")
    if name in sys.modules:
        return sys.modules[name]
    enter_host(host)
    importlib.import_module("nodes")  # the host's, before the pack's folder of that name can be found
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
