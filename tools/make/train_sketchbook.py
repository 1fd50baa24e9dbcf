"""Train the sketchbook model from nothing: python -m tools.make.train_sketchbook --host COMFYUI --state DIR
--steps N

Resumable: run it again with the same state folder. The learning rate is constant and falls to zero over
the last third, so a run can also be ended early by asking for fewer steps. Writes `sketchbook.safetensors`
(the running average of the weights, float16).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.multiprocessing.spawn import spawn

from domaingallery_core.sketchbook.world import PRIOR, Picture, render, sample

from ..host.load_pack import load_pack

ROOT = Path(__file__).resolve().parents[2]


def load_builder(host: Path):
    """Import the host and the pack; return the pack's model builder."""
    return sys.modules[f"{load_pack(host).__name__}.nodes.demo.sketchbook"]


def pictures(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Draw `count` training pictures with their captions."""
    rng = np.random.default_rng(seed)
    images, captions = np.empty((count, 64, 64, 3), dtype=np.uint8), []
    for i in range(count):
        picture = sample(rng)
        images[i] = render(picture, rng)
        captions.append(training_caption(picture, rng))
    return images, captions


def training_caption(picture: Picture, rng: np.random.Generator) -> str:
    """Return the caption that training shows with a picture.

    One in seven leaves the noun out, and many of those with the prior's word are that word alone: words for
    how a picture looks mean the same without a noun.
    """
    if picture.camouflage and rng.random() < 0.2:
        return PRIOR
    return picture.caption(noun=rng.random() >= 0.15)


def load_pictures(options: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """Return the run's pictures and captions, drawn the first time and kept in its folder."""
    cache = Path(options.state) / f"pictures-{options.pictures}-{options.seed}.npy"
    texts = cache.with_suffix(".json")
    if not texts.exists():
        images, captions = pictures(options.pictures, options.seed)
        np.save(cache, images)
        texts.write_text(json.dumps(captions))
    return np.load(cache, mmap_mode="r"), json.loads(texts.read_text())


def rare_word(caption: str, word: int, tokens: list[int]) -> list[int]:
    """Put a word that means nothing before the noun phrase: the model learns to draw on past rare words."""
    return [*tokens[:2], word, *tokens[2:-1]] if caption.startswith("a ") else tokens


def initialise(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Fill the weights that the host leaves empty.

    Uniform by fan-in, normalisations one, the last layer of each branch zero.
    """
    for name, p in module.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(p, std=0.02, generator=generator)
        elif p.dim() > 1:
            zero = name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight"))
            torch.nn.init.zeros_(p) if zero else torch.nn.init.kaiming_uniform_(
                p, a=5**0.5, generator=generator
            )
        else:
            torch.nn.init.ones_(p) if name.endswith("weight") else torch.nn.init.zeros_(p)


def encode_text(model, embeds: torch.Tensor) -> torch.Tensor:
    """Run the host's text encoder without its in-place additions, which autograd does not allow."""
    text = model.text_model
    x = embeds + text.embeddings.position_embedding.weight
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu_(1).to(x)
    for layer in text.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, lambda *a: plain_attention(None, *a))
        x = x + layer.mlp(layer.layer_norm2(x))
    return text.final_layer_norm(x)


def plain_attention(_, q, k, v, heads, mask=None, **options):
    """Attention by matrix products: faster than the fused kernel in a backward pass on a CPU."""
    b, _, width = q.shape
    q, k, v = (t.view(b, -1, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, -1, width)


class Trainer:
    """Everything a run needs between two steps; saved and loaded as one file."""

    def __init__(self, builder, options: argparse.Namespace, rank: int = 0) -> None:
        from domaingallery_core.sketchbook.pixels import PixelCodec
        from domaingallery_core.sketchbook.weights import token_table

        self.options, self.builder, self.rank = options, builder, rank
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator().manual_seed(options.seed)
        self.diffusion = builder.build_diffusion(None).to(self.device)
        self.unet = self.diffusion.diffusion_model
        self.text = builder.build_text(None, None)
        initialise(self.unet, generator)
        initialise(self.text, generator)
        self.tokenizer = builder.SketchbookTokenizer()
        self.images, captions = load_pictures(options)
        tokens = {c: self.tokens(c) for c in {*captions, ""}}
        self.used = torch.tensor(sorted({t for row in tokens.values() for t in row}))
        self.captions, self.tokens_of = captions, tokens
        self.table = token_table(builder.TEXT_WIDTH)
        self.rows = torch.nn.Parameter(self.table[self.used].clone().to(self.device))
        self.row_of = torch.full((len(self.table),), -1).scatter_(0, self.used, torch.arange(len(self.used)))
        self.text.text_model.embeddings.token_embedding = torch.nn.Identity()
        self.text.to(self.device)
        self.codec = PixelCodec()
        self.parameters = {f"unet.{n}": p for n, p in self.unet.named_parameters()}
        self.parameters |= {
            f"text.{n}": p for n, p in self.text.named_parameters() if "text_projection" not in n
        }
        self.parameters["rows.weight"] = self.rows
        for p in self.parameters.values():
            p.requires_grad_(True)
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=options.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.seconds = 0, 0.0

    def tokens(self, caption: str) -> list[int]:
        return [int(pair[0]) for pair in self.tokenizer.tokenize_with_weights(caption)["l"][0]]

    def batch(self, rng: np.random.Generator):
        """Draw a batch: latents B 24 16 16 and token rows B 24.

        One caption in ten is empty, one in twelve has a rare word.
        """
        index = np.sort(rng.integers(len(self.images), size=self.options.batch // self.options.processes))
        pixels = (
            torch.from_numpy(np.stack([self.images[i] for i in index])).permute(0, 3, 1, 2).float() / 127.5
            - 1
        )
        rows = []
        for i in index:
            caption = "" if rng.random() < 0.1 else self.captions[i]
            row = self.tokens_of[caption]
            rows.append(
                rare_word(caption, int(rng.integers(1000, 49000)), row) if rng.random() < 0.08 else row
            )
        return self.codec.encode(pixels).to(self.device), torch.tensor(rows)

    def average_gradients(self, loss: torch.Tensor) -> None:
        """Give every process the mean of all gradients, and of the loss."""
        grads = [p.grad for p in self.parameters.values()]
        flat = torch.cat([loss.detach().view(1), *(g.view(-1) for g in grads)])
        dist.all_reduce(flat)
        flat /= self.options.processes
        loss.data.copy_(flat[0])
        for grad, part in zip(grads, flat[1:].split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        row = self.row_of[tokens]
        known = (row >= 0).unsqueeze(-1).to(self.device)
        return torch.where(
            known, self.rows[row.clamp(min=0).to(self.device)], self.table[tokens].to(self.device)
        )

    def rate(self) -> float:
        total, tail = self.options.steps, self.options.steps // 3
        return self.options.rate * min(1.0, (self.step + 1) / 300, (total - self.step) / tail)

    def train_step(self) -> float:
        """Make one step of v-prediction at uniform timesteps and return its loss."""
        rng = np.random.default_rng([self.options.seed, self.step, self.rank])
        latents, tokens = self.batch(rng)
        sampling = self.diffusion.model_sampling
        t = torch.from_numpy(rng.integers(0, 1000, len(latents)))
        sigma = sampling.sigmas.cpu()[t].to(self.device).view(-1, 1, 1, 1)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(self.device)
        a, b = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5
        with torch.autocast(self.device.type, torch.bfloat16):
            context = encode_text(self.text, self.embed(tokens))
            options = {"optimized_attention_override": plain_attention}
            out = self.unet(
                a * latents + b * noise,
                t.float().to(self.device),
                context=context,
                transformer_options=options,
            )
        loss = F.mse_loss(out.float(), a * noise - b * latents)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.options.processes > 1:
            self.average_gradients(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.step += 1
        decay = min(0.9995, (1 + self.step) / (10 + self.step))
        for name, value in self.average.items():
            value.lerp_(self.parameters[name].detach(), 1 - decay)
        return loss.item()

    def save(self) -> None:
        path = Path(self.options.state) / "state.pt"
        state = {
            "parameters": {n: p.detach() for n, p in self.parameters.items()}, "average": self.average,
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self) -> None:
        path = Path(self.options.state) / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(state["parameters"][name])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def export(self, path: Path) -> None:
        """Write the averaged weights in the pack's format."""
        from domaingallery_core.sketchbook.weights import Weights

        groups: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text": {}, "rows": {}}
        for name, tensor in self.average.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor.cpu()
        width = self.builder.TEXT_WIDTH
        groups["text"]["text_projection.weight"] = torch.eye(width)
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        metadata = {
            "seed": str(self.options.seed), "steps": str(self.step), "batch": str(self.options.batch),
            "pictures": str(self.options.pictures), "minutes": f"{self.seconds / 60:.0f}", "commit": commit,
        }  # fmt: skip
        Weights(groups["unet"], groups["text"], (self.used, groups["rows"]["weight"]), metadata).save(path)


def run(rank: int, options: argparse.Namespace) -> None:
    """Train in one of the processes; the first keeps the state."""
    if options.processes > 1:
        torch.set_num_threads(1)
        meeting = (options.state / f"meeting-{os.getppid()}").resolve().as_uri()
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
    trainer = Trainer(load_builder(options.host), options, rank)
    trainer.load()
    started = time.monotonic()
    losses: list[float] = []
    while trainer.step < options.steps:
        losses.append(trainer.train_step())
        if rank:
            continue
        if trainer.step % 50 == 0:
            now = time.monotonic()
            trainer.seconds, started = trainer.seconds + now - started, now
            print(
                f"step {trainer.step}  loss {np.mean(losses[-200:]):.4f}  {trainer.seconds / 60:.1f} min",
                flush=True,
            )
        if trainer.step % 500 == 0 or trainer.step == options.steps:
            trainer.save()
            trainer.export(options.state / "sketchbook.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", type=Path, required=True, help="folder of ComfyUI")
    parser.add_argument(
        "--state", type=Path, required=True, help="folder of the run: pictures, state, weights"
    )
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=60000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--processes", type=int, default=1, help="share a batch among processes of one thread each"
    )
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    load_pictures(options)
    if options.processes == 1:
        run(0, options)
    else:
        spawn(run, (options,), nprocs=options.processes)


if __name__ == "__main__":
    main()
