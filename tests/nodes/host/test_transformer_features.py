"""What Eq. 4 compares of a transformer: the tokens of the image after each block of the first half."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.nodes.thin_models import MODELS, write_model

SIDE = 8
#: Blocks that are read, and the width of a token.
READ = {"flux": (2, 256), "sd3": (1, 192), "krea2": (1, 256), "wan2.1": (1, 256), "hunyuan-image": (2, 256)}


@pytest.fixture(params=READ)
def family(request):
    return request.param


@pytest.fixture
def look(comfy, nodes, family, tmp_path):
    """Return a function that gives features for a prompt, the blocks that ran for it, and what they gave."""
    with torch.inference_mode():
        model = importlib.import_module("comfy.sd").load_diffusion_model(str(write_model(tmp_path, family)))
    host, thin = nodes("nodes.host.model"), MODELS[family]
    form = model.model.latent_format

    def prompt(seed):
        generator = torch.Generator().manual_seed(seed)
        pooled = torch.randn(1, thin.pooled or 1, generator=generator)
        return [[torch.randn(1, 5, thin.context, generator=generator), {"pooled_output": pooled}]]

    def run(seed, rows=3):
        ran, gave = [], []
        with host.training(model), torch.no_grad():
            denoiser = host.HostDenoiser(model)
            x = torch.randn(
                rows, form.latent_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(9)
            )
            [condition] = denoiser.conditions([prompt(seed)], x)
            blocks = denoiser.family.blocks(model.model.diffusion_model)
            hooks = [block.register_forward_hook(noting(i, ran, gave)) for i, block in enumerate(blocks)]
            found = denoiser.features(x, torch.full((rows,), 0.5), condition)
            for hook in hooks:
                hook.remove()
        return found, ran, gave, len(blocks)

    return run


def noting(number, ran, gave):
    """Return a hook that notes that a block ran, and what it gave."""

    def note(block, given, output):
        ran.append(number)
        gave.append(output)

    return note


def test_they_are_the_tokens_of_the_image_after_the_first_blocks(look, nodes, family):
    read, width = READ[family]
    tokens = (SIDE // nodes("nodes.host.families").FAMILIES.get(NAMES.get(family, family)).patch) ** 2

    found, ran, gave, blocks = look(seed=0)

    assert [tuple(each.shape) for each in found] == [(3, width, tokens, 1)] * read
    assert ran == list(range(read)) and read <= max(1, blocks // 2) < blocks
    whole = gave[0][IMAGE.get(family, 0)] if isinstance(gave[0], tuple) else gave[0]
    assert torch.equal(found[0][..., 0].mT, whole.flatten(1, -2)[:, -tokens:])


def test_rows_differ_and_depend_on_the_prompt(look):
    (first, *_), (second, *_) = look(seed=0), look(seed=1)

    assert not torch.equal(first[-1][0], first[-1][1])
    assert not torch.equal(first[-1], second[-1])


NAMES = {"wan2.1": "wan"}
IMAGE = {"sd3": 1}
