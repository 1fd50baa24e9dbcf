"""Two hosts on one output folder, one of which is killed: nothing is lost, and nothing is left over."""

from __future__ import annotations

from benchmarks.two_hosts import Pair


def test_one_of_two_hosts_is_killed(host_path, tmp_path, monkeypatch):
    """Both train the same, and save under the same name."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pair = Pair(host_path, tmp_path, seed=1)
    try:
        found = pair.round(1)
    finally:
        pair.stop()

    assert pair.lost == 0, found
    assert len(list((tmp_path / "output" / "loras").rglob("*.safetensors"))) >= 2
