"""A kind of adapter is one class: here, (IA)^3 (arXiv 2205.05638), which scales each output of a layer."""

from __future__ import annotations

import pytest
import torch
from toys import LAYERS, ToyDenoiser, inject, inputs, latents, load_lora, names_of, network, part, plan

from domaingallery_core.files.lora import save_lora
from domaingallery_core.run.checkpoints import Checkpoints
from domaingallery_core.run.identity import run_identity
from domaingallery_core.run.monitor import Monitor
from domaingallery_core.run.trainer import train
from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.kinds import KINDS, Kind, describe
from domaingallery_core.trainables.kinds.base import pattern, rank_and_alpha


class Ia3(Kind):
    """(IA)^3, which begins with ones."""

    name, title = "ia3", "(IA)^3"
    parts = {"ia3_l": "weight"}  # noqa: RUF012
    network = "lycoris.kohya"

    def peft_config(self, modules):
        from peft import IA3Config

        return IA3Config(target_modules=pattern(modules), feedforward_modules=[])

    def first(self, part, shape, base, generator):
        return torch.ones(shape)

    @classmethod
    def described(cls, tensors):
        found = rank_and_alpha(tensors, "ia3_l")
        return None if found is None else (1, found[1])  # it has no rank


del KINDS["ia3"]  # a test adds it
CONFIG = {"kind": "ia3", "rank": 1, "alpha": 1.0}


@pytest.fixture(autouse=True)
def added():
    KINDS["ia3"] = Ia3
    yield
    del KINDS["ia3"]


def run(folder=None, on_step=None):
    model, settings = network(), plan("domaingallery", steps=6, **CONFIG)
    parts = [part(latents(5, 1), latents(6, 2))]
    with inject(model, settings.adapter) as adapter:
        identity = run_identity(adapter, parts, settings, {})
        checkpoints = Checkpoints(folder, identity, every=1) if folder else None
        result = train(
            ToyDenoiser(model), adapter, parts, settings, on_step, checkpoints=checkpoints,
            monitor=Monitor(preview_every=3, preview_steps=2),
        )  # fmt: skip
        return result, adapter.exported(result.state_dict)


def test_a_fresh_one_changes_nothing():
    model = network()
    before = model(*inputs())

    with inject(model, AdapterSettings(**CONFIG)) as adapter:
        assert len(adapter.parameters()) == LAYERS
        torch.testing.assert_close(model(*inputs()), before)


def test_it_is_trained_and_drawn_with():
    result, lora = run()

    assert len(result.losses["total"]) == 6 and result.previews.keys() == {0, 3, 6}
    assert not torch.equal(result.previews[0], result.previews[6])
    assert describe(lora) == ("ia3", 1, 1.0)


@pytest.mark.parametrize("key_format", ["comfyui", "kohya"])
def test_it_goes_on_to_the_same_bytes_and_is_saved(tmp_path, key_format):
    whole, _ = run()

    def stop(event):
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop)
    resumed, lora = run(tmp_path / "run")
    names = names_of(**{name.rpartition(".")[0]: f"lora_unet_{i}" for i, name in enumerate(lora)})
    path = save_lora(tmp_path / "ia3.safetensors", lora, key_format=key_format, names=names)

    assert resumed.resumed == 2
    assert all(torch.equal(tensor, whole.state_dict[name]) for name, tensor in resumed.state_dict.items())
    again, _ = load_lora(path, names)
    with inject(network(), AdapterSettings(**CONFIG)) as adapter:
        adapter.load(adapter.imported(again))
        assert all(torch.equal(t, whole.state_dict[name]) for name, t in adapter.state_dict().items())
