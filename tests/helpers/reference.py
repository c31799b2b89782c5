"""What Transformers computes for a checkpoint: the reference of every parity test.

Torch on the CPU, float32, one row. Knows nothing of MLX or of this runtime.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pytest
import transformers
from transformers import PreTrainedModel

from helpers.checkpoints import VOCAB

torch = pytest.importorskip("torch")  # without it, test files that import this are skipped

Result = TypeVar("Result")

torch.set_num_threads(1)  # at these sizes more are slower

# Scores of two float32 implementations differ by about 1e-5 of their spread. If the last token,
# expert or cluster chosen leads the next by less than this share of the spread, both may choose
# differently and be right, and everything after that proves nothing about parity.
LEAST_LEAD = 5e-5
_leads: list[float] = []  # of the choices since the last `decisive` started


class Draft(NamedTuple):
    """The drafts of one round, as Transformers' assistant computes them."""

    newest: int  # the target's greedy token after the committed ids; the first step embeds it
    logits: list[np.ndarray]  # one [V] per step
    tokens: list[int]  # arg max of each step; the next step embeds it

    def candidates(self, step: int) -> set[int]:
        """The tokens that a centroid head scored: all others get one value below the least."""
        logits = self.logits[step]
        return set(np.flatnonzero(logits > logits.min()).tolist())


@lru_cache(maxsize=16)
def load(folder: Path) -> PreTrainedModel:
    """The checkpoint, in the class that its config.json names."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model: PreTrainedModel = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    for name, module in model.named_modules():
        if name.endswith("router.proj"):
            _note_choices_of(module, config.get_text_config().top_k_experts)
        elif name.endswith("masked_embedding.centroids"):
            _note_choices_of(module, config.centroid_intermediate_top_k)
    return model.eval()


def decisive(
    compute: Callable[[list[int]], Result], rng: np.random.Generator, length: int
) -> tuple[list[int], Result]:
    """A random prompt for which `compute`, made of functions below, has no near tie."""
    for _ in range(50):
        ids = rng.integers(0, VOCAB, length).tolist()
        _leads.clear()
        result = compute(ids)
        if min(_leads, default=np.inf) > LEAST_LEAD:
            return ids, result
    raise AssertionError("50 random prompts all had a near tie: draw better weights")


@torch.inference_mode()
def target_logits(folder: Path, ids: Sequence[int]) -> np.ndarray:
    """Logits after the softcap, of all positions at once and without a cache: [T, V]."""
    return load(folder)(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


@torch.inference_mode()
def greedy(folder: Path, ids: Sequence[int], n: int) -> list[int]:
    """The `n` tokens that Transformers' `generate` appends, with its cache and without EOS."""
    out = load(folder).generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=n,
        do_sample=False,
        temperature=None,
        top_k=None,
        top_p=None,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for scores in out.scores:
        _note_choice(scores[scores > -torch.inf], 1)
    return list(out.sequences[0, len(ids) :].tolist())


@torch.inference_mode()
def draft(
    target_folder: Path,
    drafter_folder: Path,
    ids: Sequence[int],
    num_steps: int,
    position_offset: int = -1,
) -> Draft:
    """Draft after P = len(ids) committed positions, with queries at P + position_offset.

    Keys and values come from a forward without a cache, so they are complete, and only those of
    the P positions.
    """
    target, assistant = load(target_folder), load(drafter_folder)
    committed = target.get_decoder()(
        input_ids=torch.tensor([ids]), use_cache=False, return_shared_kv_states=True
    )
    # transformers 5.22.2: the assistant's sliding layers see keys up to a distance of window
    # (`sliding_window_bidirectional_overlay` is inclusive), so window + 1 keys; the target's own
    # sliding layers see window. In `generate` it gets all prompt keys after the prefill, hence
    # window + 1. In later rounds it gets what the target's sliding cache returned, with rejected
    # drafts once that is shorter than the text. The rule is the newest `window` committed keys:
    # they are cut to that here, and then the mask hides none.
    window = target.config.get_text_config().sliding_window
    shared = dict(committed.shared_kv_states)
    newest_keys_values = (part[:, :, -window:] for part in shared["sliding_attention"])
    shared["sliding_attention"] = tuple(newest_keys_values)
    embed = target.get_input_embeddings()  # multiplies by sqrt(hidden) itself
    hidden = committed.last_hidden_state[:, -1:]  # after the final norm
    newest = _best(target.lm_head(hidden))
    logits: list[np.ndarray] = []
    tokens: list[int] = []
    for _ in range(num_steps):
        last_token = torch.tensor([[tokens[-1] if tokens else newest]])
        step = assistant(
            inputs_embeds=torch.cat([embed(last_token), hidden], dim=-1),
            position_ids=torch.tensor([[len(ids) + position_offset]]),
            shared_kv_states=shared,
        )
        hidden = step.last_hidden_state  # after post_projection
        logits.append(step.logits[0, 0].numpy())
        tokens.append(_best(step.logits))
    return Draft(newest, logits, tokens)


def _best(logits: torch.Tensor) -> int:
    _note_choice(logits, 1)
    return int(logits.argmax())


def _note_choices_of(scorer: torch.nn.Module, k: int) -> None:
    """Note every later choice of k among the scores that this module returns."""
    scorer.register_forward_hook(lambda _module, _inputs, scores: _note_choice(scores, k))


def _note_choice(scores: torch.Tensor, k: int) -> None:
    ranked = scores.sort(dim=-1, descending=True).values
    _leads.append(float((ranked[..., k - 1] - ranked[..., k]).min() / scores.std()))
