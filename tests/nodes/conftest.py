"""What the tests of the nodes share: the pack, loaded as the host loads it, in this very process."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gallery import PACK
from tests.nodes.tiny import tiny_dataset, tiny_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep the tests off the other cores; small models are no faster with them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def comfy(host_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the host's package, set to the CPU."""
    sys.path.insert(0, str(host_path))  # first, or its `nodes` would be the pack's
    cli = importlib.import_module("comfy.cli_args")
    cli.args.cpu = True
    for name in ("nodes", "comfy.sd", "comfy.samplers", "comfy.model_base"):
        importlib.import_module(name)
    folder_paths = importlib.import_module("folder_paths")
    folder_paths.set_output_directory(str(tmp_path_factory.mktemp("output")))  # nothing goes into the host
    folder_paths.set_input_directory(str(tmp_path_factory.mktemp("input")))
    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))
    return sys.modules["comfy"]


@pytest.fixture(autouse=True)
def output(comfy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what a test writes out of the host's folder."""
    monkeypatch.setattr(sys.modules["folder_paths"], "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def pack(comfy: ModuleType) -> ModuleType:
    """Return the pack as a module, loaded by path as the host does it."""
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nodes(pack: ModuleType):
    """Return a function that gives a module of the pack by name, such as "nodes.host.model"."""
    return lambda name: sys.modules[f"{pack.__name__}.{name}"]


@pytest.fixture(scope="session")
def errors(nodes) -> ModuleType:
    """Return the errors of the pack, as it was loaded."""
    return nodes("domaingallery_core.errors")


@pytest.fixture
def model(comfy: ModuleType) -> Any:
    """Return a MODEL of the test's own, with random weights."""
    return tiny_model()


@pytest.fixture
def dataset(nodes) -> Any:
    """Return a LatentDataset of five source and three target images."""
    return tiny_dataset(nodes)


@pytest.fixture
def said(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines of text that nodes show."""
    lines: list[str] = []
    progress = sys.modules[f"{pack.__name__}.nodes.host.progress"]
    monkeypatch.setattr(progress, "send", lambda node, text: lines.append(text))
    return lines


@pytest.fixture
def cancel_at(nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Return a function that makes the host's interrupt come at the given step of the next training."""
    progress, management = nodes("nodes.host.progress"), sys.modules["comfy.model_management"]
    check = progress.check_interrupt

    def arrange(step: int) -> None:
        checks: list[int] = []

        def interrupted() -> None:
            checks.append(1)
            if len(checks) == step:
                management.interrupt_current_processing(True)
            check()

        monkeypatch.setattr(progress, "check_interrupt", interrupted)

    yield arrange
    management.interrupt_current_processing(False)
