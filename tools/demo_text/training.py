"""Training: the loop that fits the network to packed rows, and the loss on held-out ones."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .corpus import Rows
from .llama import Llama

SKIPPED = 4


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    steps: int
    seed: int
    batch: int = 4
    peak: float = 4e-3
    rest_peak: float = 3e-3
    floor: float = 0.02
    warmup: int = 100
    decay: float = 0.1
    report_every: int = 50
    save_every: int = 500


@dataclass
class Log:
    """What was measured on the way: step, seconds, tokens and loss."""

    path: Path
    started: float = field(default_factory=time.time)
    rows: list[dict] = field(default_factory=list)

    def add(self, step: int, steps: int, loss: float) -> None:
        """Print a progress line and rewrite the file."""
        seconds = time.time() - self.started
        self.rows.append({"step": step, "seconds": round(seconds, 1), "loss": round(loss, 4)})
        left = seconds / step * (steps - step)
        print(f"step {step}/{steps}  loss {loss:.3f}  {seconds:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)
        self.path.write_text(json.dumps(self.rows, indent=0) + "\n", encoding="utf-8")


def rate_share(plan: Plan, step: int) -> float:
    """The share of the peak rate: a linear warm-up, then half a cosine down to the floor."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizers(model: Llama, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, which learns with fewer tokens here, and AdamW for the rest."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.dim() == 2]
    gains = [weight for weight in model.parameters() if weight.dim() == 1]
    rest = [model.model.embed_tokens.weight, *gains]
    return [
        torch.optim.Muon(matrices, lr=plan.peak, weight_decay=plan.decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=plan.rest_peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def advance(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Take one step of every optimizer at a share of its peak rate, and forget the gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group.setdefault("peak", group["lr"])
        optimizer.step()
        optimizer.zero_grad()


def token_losses(model: Llama, tokens: Tensor) -> Tensor:
    """Nats for every token of the rows but the first, computed in bfloat16 where that is safe."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1])
    losses = functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)


def train(model: Llama, rows: Rows, plan: Plan, log: Log, save: Callable[[], None]) -> None:
    """Go through the rows once, in their order, saving now and then."""
    optimizers = make_optimizers(model, plan)
    recent = []
    for step in range(plan.steps):
        part = slice(step * plan.batch, (step + 1) * plan.batch)
        tokens = torch.from_numpy(rows.tokens[part].astype(np.int64))
        weights = torch.from_numpy(rows.weights[part])[:, 1:]
        loss = (token_losses(model, tokens) * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        advance(optimizers, rate_share(plan, step))
        recent.append(loss.item())
        if (step + 1) % plan.report_every == 0 or step + 1 == plan.steps:
            log.add(step + 1, plan.steps, sum(recent) / len(recent))
            recent.clear()
        if (step + 1) % plan.save_every == 0:
            save()


@torch.no_grad()
def held_out_loss(model: Llama, rows: np.ndarray) -> float:
    """Nats per token over rows in float32, each from its fifth token on as in the n-gram model."""
    total = 0.0
    for row in rows:
        tokens = torch.from_numpy(row[None].astype(np.int64))
        logits = model(tokens[:, :-1])
        losses = functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        total += losses[:, SKIPPED - 1 :].mean().item()
    return total / len(rows)


@torch.no_grad()
def continue_greedily(model: Llama, tokens: list[int], stops: set[int], most: int = 120) -> list[int]:
    """The most likely continuation up to a stop token, by running the whole text again for each token."""
    tokens, start = list(tokens), len(tokens)
    while len(tokens) < min(start + most, model.shape.context):
        best = int(model(torch.tensor([tokens]))[0, -1].argmax())
        if best in stops:
            break
        tokens.append(best)
    return tokens[start:]
