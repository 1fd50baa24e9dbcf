"""What tells a MODEL from others: every node of the host that changes what it computes gives another one."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

from tests.nodes.tiny import conditioning, host_module, tiny_model
from tests.nodes.training import erase

#: Predictions and schedules that the host's node sets.
SCHEDULES = [("eps", False), ("v_prediction", False), ("x0", False), ("lcm", False), ("eps", True)]


def identity(nodes, model):
    return nodes("nodes.host.identity").model_identity(model)


def differing(nodes, first, second):
    """Return the aspects in which two MODELs differ."""
    one, other = identity(nodes, first), identity(nodes, second)
    return sorted(name for name in one if one[name] != other[name])


def test_the_same_model_is_the_same_however_it_was_made_and_used(nodes):
    model, lora = tiny_model(), None
    before = identity(nodes, model)
    assert before == identity(nodes, tiny_model()) == identity(nodes, model.clone())

    sample(model, steps=1)
    assert identity(nodes, model) == before
    lora = erase(nodes, model)[0]
    assert identity(nodes, model) == before
    patched, _ = host_module("comfy.sd").load_lora_for_models(model, None, lora, 1.0, 0)
    with_lora = identity(nodes, patched)
    sample(patched, steps=1)  # which puts the patches into the weights
    assert identity(nodes, patched) == with_lora
    sample(model, steps=1)
    assert identity(nodes, model) == before
    with nodes("nodes.host.model").training(patched):
        assert identity(nodes, patched) == with_lora != before


def test_another_process_finds_the_same_identity(nodes, host_path):
    code = (
        "import pathlib, sys, types\n"
        "host, root = sys.argv[1:]\n"
        "sys.path.append(root)\n"
        "from tools.host.load_pack import load_pack\n"
        "load_pack(pathlib.Path(host))\n"
        "sys.modules['tests'] = types.ModuleType('tests')\n"  # another package has that name
        "sys.modules['tests'].__path__ = [root + '/tests']\n"
        "from tests.nodes.tiny import tiny_model\n"
        "from tests.nodes.host.test_identity import patched_model\n"
        "name = next(n for n in sys.modules if n.endswith('.nodes.host.identity'))\n"
        "print(sorted(sys.modules[name].model_identity(patched_model()).items()))\n"
    )
    root = str(importlib.import_module("gallery").PACK)
    found = subprocess.run(
        [sys.executable, "-c", code, str(host_path), root], capture_output=True, text=True, cwd=root
    )

    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.splitlines()[-1] == str(sorted(identity(nodes, patched_model()).items()))


def patched_model():
    """Return a MODEL with patches of several kinds, all of the host's own nodes."""
    model = tiny_model()
    advanced = importlib.import_module("comfy_extras.nodes_model_advanced")
    model = advanced.ModelSamplingDiscrete().patch(model, "v_prediction", True)[0]
    model = advanced.RescaleCFG().patch(model, 0.7)[0]
    free = importlib.import_module("comfy_extras.nodes_freelunch")
    return free.FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0]


def sample(model, steps=2, seed=0):
    """Return what the host's sampler draws."""
    with torch.inference_mode():
        latents = torch.zeros(1, 4, 16, 16)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(0)
        return host_module("comfy.sample").sample(
            model, noise, steps, 3.0, "euler", "normal", conditioning(1), conditioning(2), latents,
            seed=seed, disable_pbar=True,
        )  # fmt: skip


@pytest.mark.parametrize(("sampling", "zsnr"), SCHEDULES)
def test_each_prediction_and_schedule_is_another_model(nodes, sampling, zsnr):
    patch = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingDiscrete().patch
    mine = patch(tiny_model(), sampling, zsnr)[0]

    for other in SCHEDULES:
        expected = [] if other == (sampling, zsnr) else ["object patches", "prediction and schedule"]
        assert differing(nodes, mine, patch(tiny_model(), *other)[0]) == expected
    assert differing(nodes, tiny_model("EPS"), tiny_model("V_PREDICTION"))


def test_a_weight_a_strength_and_a_hook_count(nodes):
    key = "diffusion_model.out.2.weight"
    weight = torch.ones(tiny_model().model.state_dict()[key].shape)

    def patched(strength):
        model = tiny_model()
        model.add_patches({key: ("diff", (weight,))}, strength)
        return model

    assert differing(nodes, patched(1.0), patched(1.0)) == []
    assert differing(nodes, patched(1.0), patched(0.9)) == ["patches"]
    assert differing(nodes, tiny_model(), tiny_model(seed=1)) == ["weights"]
    one = tiny_model()
    with torch.inference_mode():
        one.model.diffusion_model.out[2].bias[0] += 1e-6
    assert differing(nodes, tiny_model(), one) == ["weights"]
    hooked, replaced = tiny_model(), tiny_model()
    hooked.model.diffusion_model.middle_block[0].register_forward_hook(lambda m, given, out: out * 2)
    replaced.model.diffusion_model.middle_block[0].forward = lambda *given, **more: given[0]
    assert differing(nodes, tiny_model(), hooked) == ["family"] == differing(nodes, tiny_model(), replaced)
    assert differing(nodes, hooked, replaced) == ["family"]


def patching_nodes():
    """Return every node class of the host that takes a MODEL and gives one, by name."""
    import pkgutil

    import comfy_extras

    names = [f"comfy_extras.{module.name}" for module in pkgutil.iter_modules(comfy_extras.__path__)]
    found = {}
    for name in ["nodes", *names]:
        try:
            module = sys.modules.get(name) or importlib.import_module(name)
        except Exception:
            continue
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__ and takes_and_gives_a_model(kind):
                found[kind.__name__] = kind
    return found


def takes_and_gives_a_model(kind):
    try:
        if "MODEL" not in kind.RETURN_TYPES:
            return False
        groups = kind.INPUT_TYPES().values()
    except Exception:  # no node
        return False
    return any(
        given[0] == "MODEL" for group in groups for given in group.values() if isinstance(given, tuple)
    )


def values_for(kind, model):
    """Return simple values for the inputs of a node: its defaults, small prompts and latents, this model."""
    plain = {"INT": 1, "FLOAT": 0.5, "BOOLEAN": True, "STRING": ""}
    found = {}
    types = kind.INPUT_TYPES()
    for name, given in {**types.get("required", {}), **types.get("optional", {})}.items():
        sort, options = given[0], given[1] if len(given) > 1 and isinstance(given[1], dict) else {}
        if sort == "MODEL":
            found[name] = model if "model" not in found else tiny_model(seed=3)
        elif isinstance(sort, list | tuple):
            found[name] = options.get("default", sort[0] if sort else None)
        elif sort == "COMBO":
            choices = options.get("options") or [None]
            found[name] = options.get("default", choices[0])
        elif sort in plain:
            found[name] = options.get("default", plain[sort])
        elif sort == "CONDITIONING":
            found[name] = conditioning(5)
        elif sort == "LATENT":
            found[name] = {"samples": torch.zeros(1, 4, 16, 16)}
        elif name in types.get("required", {}):
            return None
    return found


def test_every_node_of_the_host_that_patches_a_model_gives_another_identity_or_changes_nothing(nodes):
    """All that run on a small UNet with simple values; those that do not are no patches of such a model."""
    plain, expected = tiny_model(), sample(tiny_model())
    base = identity(nodes, plain)
    told, unchanged, not_run = [], [], []
    for name, kind in sorted(patching_nodes().items()):
        with torch.inference_mode():
            try:
                values = values_for(kind, tiny_model())
                if values is None:
                    raise TypeError("it needs an input that has no simple value")
                run = getattr(kind() if not hasattr(kind, "execute") else kind, kind.FUNCTION)
                out = run(**values)
                out = getattr(out, "result", out)
                [patched] = [each for each in out if isinstance(each, type(plain).__mro__[1])][:1]
            except Exception as error:
                not_run.append(f"{name}: {type(error).__name__}")
                continue
        if identity(nodes, patched) != base:
            told.append(name)
            continue
        assert torch.equal(sample(patched), expected), f"{name} changes pictures under the same identity"
        unchanged.append(name)
    assert len(told) >= 60, (told, not_run)
    assert {"FreeU", "HyperTile", "RescaleCFG", "ModelSamplingDiscrete", "TomePatchModel"} <= {*told}
