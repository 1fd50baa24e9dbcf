"""A training that is fitted into memory learns the same, and says what it takes; the MODEL stays whole."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from benchmarks.memory import Live
from tests.nodes import training
from tests.nodes.tiny import host_module, same, tiny_model, tiny_prompts, weights_of
from tests.nodes.training import draw

GB = 2**30


@pytest.fixture
def run_options(nodes):
    return lambda **changes: nodes("nodes.sockets").RunOptions(**{"preview_every": 0} | changes)


@pytest.fixture
def free(nodes, monkeypatch):
    """Return a function that sets how many bytes are free on every device."""
    management = host_module("comfy.model_management")
    return lambda size: monkeypatch.setattr(management, "get_free_memory", lambda *_: size)


@pytest.fixture
def tried(nodes, monkeypatch):
    """Try every run, however short."""
    monkeypatch.setattr(nodes("domaingallery_core.memory.fitting"), "WORTH", 1)


def train(nodes, model, **changes):
    options = nodes("nodes.sockets").TrainingOptions(denoise_steps=2)
    return training.train(nodes, model, **{"options": options} | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whatever_it_is_fitted_by_the_lora_and_the_losses_are_the_same(
    nodes, run_options, free, tried, dtype
):
    """The base of the second is cast for each call."""
    options = nodes("nodes.sockets").TrainingOptions(denoise_steps=2, precision="float32")

    def learned(**given):
        return train(nodes, tiny_model(dtype=dtype), options=options, run_options=run_options(**given))

    expected = learned(gradient_checkpointing="off")
    free(2**20)  # of which some blocks are to be computed again
    for given in (
        {},
        {"gradient_checkpointing": "on"},
        {"gradient_checkpointing": "off", "offload": "on"},
        {"gradient_checkpointing": "automatic", "offload": "on"},
    ):
        found = learned(**given)
        assert same(found[0], expected[0]), given
        assert found[1] == expected[1]


def test_blocks_whose_weights_are_moved_are_few_at_once(nodes, model, run_options, monkeypatch):
    """And all that was moved is gone when the training ends; the MODEL has its own weights."""
    mover, seen = nodes("domaingallery_core.memory.moving").Mover, []
    copied, before = mover.copied, weights_of(model)
    blocks = nodes("nodes.host.families").family_of(model).blocks(model.model.diffusion_model)
    sizes = [sum(weight.nbytes for weight in block.parameters()) for block in blocks]

    def noted(self, tensor):
        found = copied(self, tensor)
        seen.append(torch.multiprocessing.reductions.StorageWeakRef(found.untyped_storage()))
        alive.append(sum(size for ref, size in zip(seen, given, strict=False) if not ref.expired()))
        return found

    given, alive = [], []
    monkeypatch.setattr(
        mover, "copied", lambda self, tensor: (given.append(tensor.nbytes), noted(self, tensor))[1]
    )
    train(nodes, model, run_options=run_options(offload="on"))

    assert max(alive) <= 2 * max(sizes) < sum(sizes)
    assert all(reference.expired() for reference in seen)
    assert same(weights_of(model), before)
    assert not any("forward" in module.__dict__ for module in model.model.modules())


def on_a_card(monkeypatch):
    """Let the device be a card to the host: the pack loads the MODEL, and copies what is not at home."""
    monkeypatch.setattr(host_module("comfy.model_management"), "is_device_cpu", lambda device: False)


def test_a_model_that_is_loaded_with_its_blocks_at_home_learns_the_same(
    nodes, model, run_options, monkeypatch
):
    expected, before = train(nodes, model), weights_of(model)
    resident, loaded = nodes("nodes.host.model").resident, []

    def noted(patcher, home):
        loaded.append((patcher, len(home)))
        return resident(patcher, home)

    monkeypatch.setattr(nodes("nodes.host.model"), "resident", noted)
    with monkeypatch.context() as patch:
        on_a_card(patch)
        found = train(nodes, model, run_options=run_options(offload="on"))

    assert [patcher for patcher, home in loaded if home] == [model]
    assert same(found[0], expected[0]) and found[1] == expected[1]
    assert same(weights_of(model), before)


@pytest.mark.parametrize("setting", ["on", "off"])
def test_offload_is_the_last_that_is_advised_on_a_card(
    nodes, errors, model, run_options, monkeypatch, setting
):
    def out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.AdamW, "step", out)
    on_a_card(monkeypatch)
    with pytest.raises(errors.OutOfMemory) as raised:
        train(nodes, model, run_options=run_options(offload=setting))

    advised = re.search(
        r"smaller images.*; set offload in Domain Run Options to on \([\d.]+ MB of the", str(raised.value)
    )
    assert bool(advised) == (setting == "off")


def test_offload_in_system_memory_is_said_to_save_nothing(nodes, model, run_options, said):
    train(nodes, model, run_options=run_options(offload="on"))

    assert "The model is in system memory already" in said[-1]


def test_the_node_says_what_a_training_takes(nodes, model, said, free, tried, run_options):
    free(8 * GB)
    train(nodes, model, run_options=run_options())
    [plain] = {line for text in said for line in text.splitlines() if "trial" in line}
    said.clear()
    free(2**10)
    train(nodes, model, run_options=run_options(offload="on"))
    [cramped] = {line for text in said for line in text.splitlines() if "trial" in line}

    assert re.fullmatch(r"about \d+ s and [\d.]+ MB of \d+ GB, from a trial of one step", plain)
    assert re.fullmatch(
        r"about \d+ s and [\d.]+ MB of \d+ GB, from a trial of one step; "
        r"(\d+) of \1 blocks are computed twice; [\d.]+ MB of the model stay in system memory",
        cramped,
    )
    assert any("A step takes about" in text and "which may not do" in text for text in said)


@pytest.mark.parametrize("setting", ["on", "off"])
def test_an_estimate_is_what_a_step_takes_within_a_quarter(
    nodes, model, monkeypatch, run_options, tried, setting
):
    """That is what tensors alive at once take, as on a GPU."""
    fitting, found = nodes("domaingallery_core.memory.fitting").Fitting, []
    begin = fitting.begin

    def begun(self, trial, steps):
        begin(self, trial, steps)
        with Live(torch.device("cpu")) as live:
            trial.step()
        found.append(self.estimate.activations / live.most)

    monkeypatch.setattr(fitting, "begin", begun)
    train(nodes, model, run_options=run_options(gradient_checkpointing=setting))

    assert 0.75 < found[0] < 1.25


def test_previews_and_validation_are_part_of_the_time(nodes):
    monitor = nodes("domaingallery_core.run.monitor").Monitor
    drawn = monitor(preview_every=10, previews=2, preview_steps=5, preview_cfg=3.0)
    read = monitor(validate_every=4)

    assert drawn.rows(0, 20, 3) == 3 * 2 * 5 * 2
    assert drawn.rows(11, 20, 3) == 1 * 2 * 5 * 2
    assert read.rows(0, 10, 3) == 4 * 8 * 3  # at 0, 4, 8 and 10
    assert monitor().rows(0, 10, 3) == 0


def places(nodes):
    """Return what a training goes through: an owner, and the name of what is called of it."""
    return {
        "loading": (nodes("nodes.host.model"), "_load"),
        "encoding prompts": (nodes("nodes.host.model").HostDenoiser, "conditions"),
        "adapter": (nodes("domaingallery_core.trainables.adapters").Adapter, "inject"),
        "forward": (host_module("comfy.model_base").BaseModel, "apply_model"),
        "backward": (Tensor, "backward"),
        "clip": (torch.nn.utils, "clip_grad_norm_"),
        "optimizer": (torch.optim.AdamW, "step"),
        "result": (nodes("nodes.train.trained").TrainedAdapter, "result"),
    }


@pytest.mark.parametrize(
    "place",
    ["loading", "encoding prompts", "adapter", "forward", "backward", "clip", "optimizer", "result"],
)
def test_memory_that_runs_out_for_good_gives_the_model_back_and_says_what_helps(
    nodes, errors, model, monkeypatch, run_options, tried, place
):
    before, expected = weights_of(model), draw(nodes, model)
    owner, name = places(nodes)[place]

    def out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, out)
        with pytest.raises(errors.OutOfMemory, match="Expected enough memory for this training") as raised:
            train(nodes, model, run_options=run_options(gradient_checkpointing="off"))

    text = str(raised.value)
    order = ["gradient_checkpointing", "batch_size", "smaller images"]
    if place in ("loading", "encoding prompts", "adapter"):
        order.remove("gradient_checkpointing")  # no step was reached
    found = [text.index(word) for word in order]
    assert found == sorted(found)
    assert ("a step takes about" in text) == (place in ("backward", "clip", "optimizer", "result"))
    assert host_module("comfy.model_management").is_oom(raised.value)
    assert same(weights_of(model), before)
    assert not any(
        {"forward", "comfy_cast_weights"} & module.__dict__.keys() for module in model.model.modules()
    )
    assert torch.equal(draw(nodes, model), expected)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_memory_that_runs_out_once_costs_a_step_and_no_digit(nodes, model, monkeypatch, said, error):
    expected, calls = train(nodes, model), []
    backward = Tensor.backward

    def failing(*given, **options):
        calls.append(1)
        if len(calls) == 2:
            raise error("out of memory")
        return backward(*given, **options)

    monkeypatch.setattr(Tensor, "backward", failing)
    found = train(nodes, model)

    assert same(found[0], expected[0])
    assert len(calls) == 3
    assert any("Memory ran out in step 2, which is done again: all blocks" in text for text in said)


def test_previews_for_which_there_is_no_memory_cost_no_lora(nodes, model, monkeypatch, run_options, said):
    def out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    expected = train(nodes, model)
    monkeypatch.setattr(nodes("domaingallery_core.run.trainer"), "draw_previews", out)
    found = train(nodes, model, run_options=run_options(preview_every=1))

    assert same(found[0], expected[0])
    assert any("The pictures of step 1 could not be drawn" in text for text in said)


@pytest.mark.parametrize(("method", "moved"), [("domaingallery", True), ("dreambooth", False)])
def test_all_weights_learn_where_they_are(nodes, model, dataset, run_options, method, moved):
    """Their copies are on the device."""
    plan = nodes("nodes.sockets").TrainingOptions().plan(method, 2, 1e-4, 0)
    pairs = nodes("nodes.train.data").with_prompts(tiny_prompts(nodes), dataset)
    fit = nodes("nodes.train.fitting").Fit(model, plan, run_options(offload="on"), pairs, None)

    assert bool(fit.home) == moved


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 MB"), (3 * 2**20, "3.0 MB"), (7.04 * GB, "7.0 GB"), (24 * GB, "24 GB")]
)
def test_sizes_have_two_digits(nodes, size, text):
    assert nodes("nodes.train.fitting").gb(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (845, "14 min"), (3600 * 2.5, "2.5 h")]
)
def test_times_are_as_exact_as_an_estimate(nodes, seconds, text):
    assert nodes("nodes.train.fitting").about(seconds) == text
