"""LoRA files under the names of diffusers: layers that are several there are cut exactly and joined again."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from toys import load_lora, names_of, random

from domaingallery_core.errors import AdapterError, FileError
from domaingallery_core.files.formats.diffusers import Diffusers
from domaingallery_core.files.layers import Place
from domaingallery_core.files.lora import core_names, save_lora

Q, K, V, M = (f"transformer.blocks.0.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
ROWS = {Q: (0, 4), K: (4, 4), V: (8, 4), M: (12, 10)}
FUSED = [(name, Place("single.linear1", (rows,), 22)) for name, rows in ROWS.items()]
SWAPPED = ("transformer.norm_out", Place("final.mod", ((3, 3), (0, 3)), 6))
PLAIN = ("transformer.proj", Place("proj", (), 5))
NAMES = names_of(*FUSED, SWAPPED, PLAIN, proj="lora_unet_proj")
SIZES = {"single.linear1": 22, "final.mod": 6, "proj": 5}


def lora(rank=3, alpha=6.0, **more):
    """Return a LoRA of three layers with seven inputs each."""
    found = {}
    for seed, (module, outputs) in enumerate(SIZES.items()):
        found |= {
            f"{module}.lora_A.weight": random(rank, 7, seed=seed),
            f"{module}.lora_B.weight": random(outputs, rank, seed=seed + 10),
            f"{module}.alpha": torch.tensor(alpha),
        }
        found |= {f"{module}.{part}": make(outputs, seed) for part, make in more.items()}
    return found


def added(tensors, module):
    """Return what a LoRA adds to a weight."""
    a, b = (tensors[f"{module}.{part}.weight"].double() for part in ("lora_A", "lora_B"))
    alpha = tensors.get(f"{module}.alpha")
    return (1.0 if alpha is None else float(alpha) / len(a)) * b @ a


def test_a_layer_that_is_several_in_diffusers_is_cut_by_its_outputs():
    """Each has the same A and its rows of B, with the scale in it, as a file of diffusers has no alpha."""
    whole = lora()

    found = Diffusers(NAMES).to_file(whole)

    layers = [*ROWS, SWAPPED[0], PLAIN[0]]
    assert found.keys() == {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    for layer, (first, count) in ROWS.items():
        assert torch.equal(found[f"{layer}.lora_A.weight"], whole["single.linear1.lora_A.weight"])
        expected = added(whole, "single.linear1")[first : first + count]
        torch.testing.assert_close(added(found, layer), expected)
    swapped = added(found, SWAPPED[0])
    torch.testing.assert_close(torch.cat([swapped[3:], swapped[:3]]), added(whole, "final.mod"))


@pytest.mark.parametrize("more", [{}, {"magnitude": lambda outputs, seed: random(outputs, seed=seed)}])
def test_what_was_cut_is_joined_to_the_same(tmp_path, more):
    whole = lora(alpha=3.0, **more)

    path = save_lora(tmp_path / "a.safetensors", whole, key_format="diffusers", names=NAMES)
    found, _ = load_lora(path, NAMES)

    for module in SIZES:
        parts = [name for name in whole if name.startswith(module) and not name.endswith("alpha")]
        assert all(torch.equal(found[name], whole[name]) for name in parts)
        torch.testing.assert_close(added(found, module), added(whole, module))


@pytest.mark.parametrize("alphas", [False, True])
def test_pieces_with_matrices_of_their_own_are_joined_at_the_sum_of_their_ranks(alphas):
    """As others train q, k and v; what a file has for none of the outputs is 0."""
    ranks = {Q: 2, K: 3, M: 1}
    given = {}
    for seed, (layer, rank) in enumerate(ranks.items()):
        given |= {
            f"{layer}.lora_A.weight": random(rank, 7, seed=seed).half(),
            f"{layer}.lora_B.weight": random(ROWS[layer][1], rank, seed=seed + 10).half(),
        }
        given |= {f"{layer}.alpha": torch.tensor(2.0 * seed + 1)} if alphas else {}

    found, unknown = core_names(given, NAMES)

    assert unknown == [] and len(found["single.linear1.lora_A.weight"]) == 6
    total = added(found, "single.linear1")
    assert not total[8:12].any()
    for layer in ranks:
        first, count = ROWS[layer]
        torch.testing.assert_close(total[first : first + count], added(given, layer))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("lora.down.weight", "lora.up.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ("lora_down.weight", "lora_up.weight"),
    ],
)
def test_each_spelling_of_the_two_matrices_is_read(a, b):
    whole = lora()
    given = {f"proj.{a}": whole["proj.lora_A.weight"], f"proj.{b}": whole["proj.lora_B.weight"]}

    found, unknown = core_names({f"transformer.{name}": tensor for name, tensor in given.items()}, NAMES)

    assert found.keys() == {"proj.lora_A.weight", "proj.lora_B.weight"} and unknown == []


def test_names_of_other_layers_are_told_and_left_out():
    given = Diffusers(NAMES).to_file(lora())
    given |= {"text_encoder.x.lora_A.weight": torch.ones(2, 2), f"{Q}.bias": torch.ones(4)}

    found, unknown = core_names(given, NAMES)

    assert {name.rpartition(".lora_")[0] for name in found if ".lora_" in name} == SIZES.keys()
    assert unknown == ["text_encoder.x.lora_A.weight", f"{Q}.bias"]


def test_kinds_that_diffusers_has_no_names_for_are_refused_with_what_to_choose():
    parts = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    loha = {f"proj.{part}": torch.ones(5, 7) for part in parts}
    message = r"LoRA or a DoRA for the diffusers format, got a LoHa.* kohya or the comfyui format"

    with pytest.raises(FileError, match=message):
        Diffusers(NAMES).to_file(loha)


def test_a_dora_whose_magnitudes_are_those_of_comfyui_is_refused():
    """They are divided by another norm, which only the model tells."""
    dora = lora(dora_scale=lambda outputs, _: torch.ones(outputs, 1))

    with pytest.raises(FileError, match=r"magnitudes of a DoRA as they were trained.*lora output"):
        Diffusers(NAMES).to_file(dora)


@pytest.mark.parametrize("names", [None, NAMES])
def test_a_layer_that_diffusers_does_not_have_is_refused_by_name(names):
    given = {name.replace("proj", "extra"): tensor for name, tensor in lora().items() if "proj" in name}

    with pytest.raises(FileError, match="Expected a diffusers name for every layer, got none for 'extra'"):
        Diffusers(names).to_file(given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2": torch.ones(2, 2)},
            "layers in this file, got lokr",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(2, 7)}, "layers in this file, got lora_A.weight"),
        (
            {f"{Q}.lora_A.weight": torch.ones(2, 7), f"{Q}.lora_B.weight": torch.ones(5, 2)},
            "make up the 22 outputs of the layer 'single.linear1'",
        ),
        (
            {f"{Q}.lora_A.weight": torch.ones(0, 7), f"{Q}.lora_B.weight": torch.ones(4, 0)},
            "make up the 22 outputs",
        ),
        (
            {
                f"{Q}.lora_A.weight": torch.ones(2, 7),
                f"{Q}.lora_B.weight": torch.ones(4, 2),
                f"{Q}.dora_scale": torch.ones(4, 1),
            },
            "make up the 22 outputs",
        ),
        (
            {
                f"{layer}.{part}": torch.ones(*shape)
                for layer, (_, count) in ROWS.items()
                for part, shape in (
                    ("lora_A.weight", (2, 7)),
                    ("lora_B.weight", (count, 2)),
                    ("magnitude", (9,)),
                )
            },
            "make up the 22 outputs",
        ),
    ],
)
def test_pieces_that_cannot_be_joined_are_refused(wrong, message):
    """Factors of a Kronecker product have no rows; a magnitude for some outputs says nothing of others."""
    with pytest.raises(FileError, match=message):
        core_names(wrong, NAMES)


def test_an_alpha_of_a_piece_that_is_no_number_is_refused():
    given = {f"{Q}.lora_A.weight": torch.ones(2, 7), f"{Q}.lora_B.weight": torch.ones(4, 2)}

    with pytest.raises(AdapterError, match="alpha is a number above 0, got nan"):
        core_names(given | {f"{Q}.alpha": torch.tensor(torch.nan)}, NAMES)


def test_the_rows_of_the_test_make_up_the_layer():
    assert all(first[0] + first[1] == second[0] for first, second in pairwise(ROWS.values()))
