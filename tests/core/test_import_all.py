"""A room's files are found without a list of them."""

from __future__ import annotations

import sys

from domaingallery_core.rooms import import_all


def test_every_module_of_a_room_is_imported(tmp_path, monkeypatch):
    room = tmp_path / "a_room"
    room.mkdir()
    for name in ("__init__", "first", "second"):
        (room / f"{name}.py").write_text(f"name = {name!r}")
    monkeypatch.syspath_prepend(tmp_path)

    import_all("a_room", [str(room)])

    found = {name: module.name for name, module in sys.modules.items() if name.startswith("a_room")}
    assert found == {"a_room": "__init__", "a_room.first": "first", "a_room.second": "second"}
    for name in found:
        del sys.modules[name]
