"""The recipe that made the demo pair: the target, then the drafter on the frozen target's states.

    python -m mlx_gemma_mtp.demo.recipe.train --out FOLDER

One GPU, PyTorch and Transformers; about eight minutes on one H100. Data comes from `tasks`, shapes
from `architecture`, the drafter's chain from `drafting`. Random choices follow from `--seed`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, Gemma4AssistantForCausalLM, Gemma4ForCausalLM
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

from .architecture import build_drafter, build_target, use_every_expert
from .drafting import draft_hidden, head, read
from .examine import examine
from .packing import Rows, batches
from .tokenizer import build_tokenizer

NUM_DRAFT_STEPS = 4
BALANCE = 0.01  # weight of the load-balancing term, as in Switch Transformers (arXiv 2101.03961)


class Loss(NamedTuple):
    """What to minimise, and what to print next to it."""

    total: Tensor
    shown: Tensor


@dataclass(frozen=True)
class Phase:
    """How long and how fast one of the two models learns."""

    num_steps: int
    learning_rate: float
    minutes: float  # a wall-clock guard: the schedule ends early rather than being cut off

    def schedule(self) -> Iterator[float]:
        """The learning rate of each step: a short rise, then half a cosine down to zero."""
        started = time.monotonic()
        for step in range(self.num_steps):
            elapsed = (time.monotonic() - started) / (60 * self.minutes)
            done = max(step / self.num_steps, elapsed)
            if done >= 1:
                return
            rise = min(1.0, (step + 1) / 200)
            yield self.learning_rate * rise * (1 + math.cos(math.pi * done)) / 2


def watch_balance(target: Gemma4ForCausalLM) -> None:
    """Let every router keep how unevenly it spread its last tokens: see `unevenness`."""

    def measure(router: nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> None:
        probabilities, _, chosen = output
        num_experts = probabilities.shape[-1]
        share = functional.one_hot(chosen, num_experts).float().mean((0, 1))
        router.unevenness = num_experts * (share * probabilities.mean(0)).sum()

    for layer in target.model.layers:
        layer.router.register_forward_hook(measure)


def unevenness(target: Gemma4ForCausalLM) -> Tensor:
    """Routed share times probability, summed over experts, mean over layers; 1 is even."""
    return torch.stack([layer.router.unevenness for layer in target.model.layers]).mean()


def target_loss(target: Gemma4ForCausalLM, rows: Rows, index: Tensor) -> Loss:
    """Cross entropy of the model's own words, plus the load-balancing term."""
    masks = rows.masks(target.config.sliding_window)
    hidden = read(target, rows.tokens, rows.positions, masks).hidden
    logits = head(target, hidden.flatten(0, 1)[index])
    entropy = functional.cross_entropy(logits, rows.tokens.flatten()[index + 1])
    return Loss(entropy + BALANCE * unevenness(target), shown=entropy)


def drafter_loss(
    drafter: Gemma4AssistantForCausalLM,
    target: Gemma4ForCausalLM,
    rows: Rows,
    indices: list[Tensor],
) -> Loss:
    """Divergence from the target's distribution plus cross entropy with its best token.

    Mean over the steps; `indices[j - 1]` are the rows for which step j has something to draft.
    Shown is how often the first draft is the target's best token.
    """
    masks = rows.masks(target.config.sliding_window)
    with torch.no_grad():
        reading = read(target, rows.tokens, rows.positions, masks)
    steps = draft_hidden(drafter, target, reading, rows.tokens, rows.positions, masks, len(indices))
    losses, agreements = [], []
    for step, (hidden, index) in enumerate(zip(steps, indices, strict=True), start=1):
        with torch.no_grad():
            taught = head(target, reading.hidden.flatten(0, 1)[index + step]).log_softmax(-1)
        drafted = drafter.lm_head(hidden.flatten(0, 1)[index]).float().log_softmax(-1)
        best = taught.argmax(-1)
        divergence = functional.kl_div(drafted, taught, reduction="batchmean", log_target=True)
        losses.append(divergence + functional.nll_loss(drafted, best))
        agreements.append((drafted.argmax(-1) == best).float().mean())
    return Loss(torch.stack(losses).mean(), shown=agreements[0])


def optimizer_for(model: nn.Module) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def learn(model: nn.Module, phase: Phase, losses: Iterable[Loss], tokens_per_step: int) -> None:
    """Step through `losses` until the phase ends."""
    name = type(model).__name__
    print(f"{name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    optimizer = optimizer_for(model)
    started = time.monotonic()
    for step, (rate, loss) in enumerate(zip(phase.schedule(), losses, strict=False), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == 2:
            if not loss.total.isfinite():
                raise FloatingPointError(f"the loss of {name} is not finite at step {step}")
            seconds = time.monotonic() - started
            speed = f"{seconds:.0f} s, {step * tokens_per_step / seconds / 1000:.0f}k tokens/s"
            print(f"  step {step}: loss {loss.total.item():.4f} ({loss.shown.item():.4f}), {speed}")


def speed_up(model: nn.Module, compiled: bool) -> None:
    """The same arithmetic in fewer kernels: whole layers compiled, or norms fused into one each."""
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # layers of each kind get a version of their own
        for layer in model.model.layers:
            layer.compile()
        return
    for module in model.modules():
        if isinstance(module, Gemma4RMSNorm):
            module.forward = partial(_fused_norm, module)


def _fused_norm(norm: Gemma4RMSNorm, hidden: Tensor) -> Tensor:
    weight = norm.weight if norm.with_scale else None
    return functional.rms_norm(hidden.float(), hidden.shape[-1:], weight, norm.eps).type_as(hidden)


def save(model: nn.Module, folder: Path) -> None:
    """Write a copy in bfloat16, in files of at most 12 MB."""
    rounded = type(model)(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())  # copies into bfloat16
    rounded.generation_config = model.generation_config
    rounded.save_pretrained(folder, max_shard_size="12MB")


def train_target(options: argparse.Namespace, folder: Path, device: torch.device) -> None:
    target = build_target(len(AutoTokenizer.from_pretrained(folder))).to(device)
    use_every_expert(target)
    speed_up(target, options.compile)
    watch_balance(target)

    def losses() -> Iterator[Loss]:
        seed = 2 * options.seed
        for rows in batches(folder, options.rows, options.length, seed, options.workers):
            index = rows.predicting(1).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                yield target_loss(target, rows.to(device), index)

    phase = Phase(options.target_steps, 2e-3, options.target_minutes)
    learn(target, phase, losses(), options.rows * options.length)
    save(target, folder)


def train_drafter(
    options: argparse.Namespace, target_folder: Path, folder: Path, device: torch.device
) -> None:
    """On the states of the target as it was saved, so that both mean the same numbers."""
    target = Gemma4ForCausalLM.from_pretrained(target_folder, dtype=torch.float32).to(device)
    target.requires_grad_(False)
    use_every_expert(target)
    speed_up(target, compiled=False)
    drafter = build_drafter(target).to(device)
    speed_up(drafter, compiled=False)

    def losses() -> Iterator[Loss]:
        seed = 2 * options.seed + 1
        for rows in batches(target_folder, options.rows, options.length, seed, options.workers):
            # One token that the target wrote, then `step` tokens to draft.
            steps = range(1, NUM_DRAFT_STEPS + 1)
            indices = [rows.predicting(1 + step).to(device) for step in steps]
            with torch.autocast(device.type, torch.bfloat16):
                yield drafter_loss(drafter, target, rows.to(device), indices)

    phase = Phase(options.drafter_steps, 2e-3, options.drafter_minutes)
    learn(drafter, phase, losses(), options.rows * options.length)
    save(drafter, folder)


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    target_folder = options.out / "gemma-4-demo-it"
    drafter_folder = options.out / "gemma-4-demo-it-assistant"
    if not options.only_drafter:
        build_tokenizer().save_pretrained(target_folder)
        train_target(options, target_folder, device)
    train_drafter(options, target_folder, drafter_folder, device)
    print(examine(target_folder, drafter_folder, options.prompts, 3, device.type))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--out", type=Path, required=True, help="where the two folders go")
    option("--only-drafter", action="store_true", help="keep the target that is in --out")
    option("--seed", type=int, default=0)
    option("--rows", type=int, default=32, help="rows per step")
    option("--length", type=int, default=1024, help="tokens per row")
    option("--target-steps", type=int, default=6000)
    option("--drafter-steps", type=int, default=1500)
    option("--target-minutes", type=float, default=10.0, help="the target's phase ends by then")
    option("--drafter-minutes", type=float, default=5.0, help="the drafter's phase ends by then")
    option("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    option("--prompts", type=int, default=300, help="held-out prompts to examine with")
    option("--workers", type=int, default=14, help="processes that make training rows")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
