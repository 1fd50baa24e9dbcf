"""Train the small flow transformer on the demo model's pictures, captions and text encoder.

Rectified flow: the network predicts noise - x0 at x = (1 - t) x0 + t noise, with t of a logit-normal (SD3,
Esser et al. 2024, 3.1) that leans towards noise, where a picture of so few values is decided.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from domaingallery_core.sketchbook.pixels import PixelCodec
from domaingallery_core.sketchbook.weights import Weights
from domaingallery_core.sketchbook.world import STYLE_WORDS
from tools.make.train_sketchbook import load_pictures, plain_attention, rare_word

from .model import Size, build_flow

RATE, BATCH, WARM_UP = 8e-4, 16, 300
LEAN, SPREAD = 0.5, 1.0  # mean and standard deviation of log(t / (1 - t))
NO_CAPTION, RARE_WORD = 0.1, 0.08  # as the demo model
STYLES = tuple(words.removesuffix(" of ") for words in STYLE_WORDS.values() if words)


def initialise(network: torch.nn.Module, generator: torch.Generator) -> None:
    """Fill the weights that the host leaves empty: each block begins as the identity (DiT, adaLN-Zero)."""
    for name, p in network.named_parameters():
        if p.dim() == 1:
            torch.nn.init.ones_(p) if "ln_" in name else torch.nn.init.zeros_(p)
        elif "adaLN_modulation" in name or "final_layer" in name:
            torch.nn.init.zeros_(p)
        else:
            torch.nn.init.xavier_uniform_(p.view(len(p), -1), generator=generator)


def is_plain(caption: str) -> bool:
    """Tell whether a picture is of the plain style: the others would cost time, and no share is of them."""
    return not caption.startswith(
        tuple(words.removesuffix(" of ") for words in STYLE_WORDS.values() if words)
    )


class Training:
    """Everything that a training needs between two steps; saved and loaded as one file."""

    def __init__(self, sketchbook: ModuleType, folder: Path, size: Size, *, pictures: int, seed: int = 0):
        self.folder, self.seed = folder, seed
        self.network = build_flow(sketchbook, size).diffusion_model
        initialise(self.network, torch.Generator().manual_seed(seed))
        shipped = Weights.load()
        self.text = sketchbook.build_text(shipped.text, shipped.rows)
        tokenizer = sketchbook.SketchbookTokenizer()
        self.images, self.captions = load_pictures(Namespace(state=folder, pictures=pictures, seed=seed))
        self.tokens = {
            caption: [int(pair[0]) for pair in tokenizer.tokenize_with_weights(caption)["l"][0]]
            for caption in {*self.captions, ""}
        }
        self.plain = np.array([i for i, caption in enumerate(self.captions) if is_plain(caption)])
        self.codec = PixelCodec()
        self.parameters = dict(self.network.named_parameters())
        for p in self.parameters.values():
            p.requires_grad_(True)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.seconds = 0, 0.0
        if (folder / "flow.pt").exists():
            self.load()

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw latents B 24 16 16 and rows of tokens B 24."""
        index = np.sort(rng.choice(self.plain, BATCH))
        pixels = torch.from_numpy(self.images[index]).permute(0, 3, 1, 2).float() / 127.5 - 1
        rows = []
        for i in index:
            caption = "" if rng.random() < NO_CAPTION else self.captions[i]
            row, word = self.tokens[caption], int(rng.integers(1000, 49000))
            rows.append(rare_word(caption, word, row) if rng.random() < RARE_WORD else row)
        return self.codec.encode(pixels), torch.tensor(rows)

    def train_step(self, rate: float) -> float:
        """Make one step and return its loss."""
        rng = np.random.default_rng([self.seed, self.step])
        latents, tokens = self.batch(rng)
        with torch.no_grad():
            context, _, pooled, _ = self.text(tokens)
        t = torch.from_numpy(rng.normal(LEAN, SPREAD, len(latents)).astype(np.float32)).sigmoid()
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        noised = torch.lerp(latents, noise, t.view(-1, 1, 1, 1))
        with torch.autocast("cpu", torch.bfloat16):
            options = {"optimized_attention_override": plain_attention}
            out = self.network(noised, t * 1000, context=context, y=pooled, transformer_options=options)
        loss = F.mse_loss(out.float(), noise - latents)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        for name, value in self.average.items():
            value.lerp_(self.parameters[name].detach(), 1 - decay)
        return loss.item()

    def rate(self, seconds: float) -> float:
        """Return the learning rate: it rises at first, and falls to nothing over the last third."""
        return RATE * max(0.0, min(1.0, (self.step + 1) / WARM_UP, 3 * (1 - self.seconds / seconds)))

    def run(self, minutes: float, report: Callable[[str], None] = print, every: float = 60.0) -> None:
        """Train until so many minutes are spent, those of earlier runs among them; keep the state."""
        started, losses, last = time.monotonic() - self.seconds, [], self.seconds
        while self.seconds < minutes * 60:
            losses.append(self.train_step(self.rate(minutes * 60)))
            self.seconds = time.monotonic() - started
            if self.seconds - last >= every or self.seconds >= minutes * 60:
                last = self.seconds
                mean = np.mean(losses[-200:])
                report(f"step {self.step}  loss {mean:.4f}  {self.seconds / 60:.1f} min")
                self.save()

    def save(self) -> None:
        path = self.folder / "flow.pt"
        state = {
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "average": self.average, "optimizer": self.optimizer.state_dict(),
            "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self) -> None:
        state = torch.load(self.folder / "flow.pt", weights_only=True)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(state["parameters"][name])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
