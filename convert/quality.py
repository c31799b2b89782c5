"""What quantizing cost: a target's predictions beside its source's, a drafter's acceptance beside
its source's.

Predictions are compared on a text, streamed, whatever fits in memory; acceptance is that of real
decoding, where a pair fits. Knows nothing of manifests or of the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, MgmError, NotEnoughMemoryError, UsageError
from mlx_gemma_mtp.files import checkpoint as weights
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.atomic import write_whole
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.text.tokenizer import Text

from . import passage
from .card import CARD, with_quality
from .predictions import OnProgress, TextQuality, compare
from .report import table

NUM_DRAFTS = 3
ANSWER_TOKENS = 128  # most per prompt


@dataclass(frozen=True)
class Drafting:
    """How many drafts came true in greedy decoding, NUM_DRAFTS a round."""

    prompts: int
    tokens: int
    acceptance_rate: float  # accepted / drafted
    acceptance_length: float  # tokens per round
    accepted_at: tuple[float, ...]  # per position: share of its drafts that came true


@dataclass(frozen=True)
class Quality:
    """What `measure` found. Where a pair was not decoded with, its place says why."""

    source: str  # its name
    texts: tuple[TextQuality, ...]
    source_drafting: Drafting | str
    drafting: Drafting | str


def measure(
    source: str | Path,
    folder: Path,
    *,
    text: Path | None = None,
    prompts: Path | None = None,
    num_tokens: int | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Quality:
    """Compare the pair in a folder with the one it was made of.

    source: a folder or a Hub name. text: a file to read instead of the shipped text. prompts: a
    file with a prompt on each line, instead of the shipped text's questions. num_tokens: most of
    each text. Raises UsageError, CheckpointError, ModelNotFoundError.
    """
    if num_tokens is not None and num_tokens < 1:
        raise UsageError(f"the number of tokens must be 1 or more, not {num_tokens}")
    pairs = hub.find_pair(source, "auto"), hub.find_pair(folder, "auto")
    configs = [_config(target) for target, _ in pairs]
    if configs[0] != configs[1]:
        raise UsageError(f"{source} is another model than {folder}: name the one it was made of")
    if not (folder / "tokenizer.json").exists():
        raise UsageError(f"{folder} has no tokenizer: there is no text to measure it on")
    tokenizer = Text(folder)
    asked = passage.questions() if prompts is None else passage.read_prompts(prompts)
    documents = passage.shipped(tokenizer) if text is None else passage.read_text(tokenizer, text)
    if num_tokens is not None:
        documents = passage.at_most(documents, num_tokens)
    if max(max(document.tokens) for document in documents) >= configs[1].vocab_size:
        raise CheckpointError(f"{folder}: its tokenizer has tokens that its config.json has not")
    texts = mlx_worker().run(
        partial(compare, pairs[0][0], pairs[1][0], documents, on_progress=on_progress)
    )
    drafting: list[Drafting | str] = []
    for target, drafter in pairs:
        on_progress("drafting", len(drafting), len(pairs))
        drafting.append(_drafting(target, drafter, asked))
    on_progress("drafting", len(drafting), len(pairs))
    name = Path(source).resolve().name if hub.is_folder(source) else str(source)
    return Quality(name, tuple(texts), *drafting)


def _drafting(target: Path, drafter: Path | None, prompts: Sequence[str]) -> Drafting | str:
    if drafter is None:
        return "it has no drafter"
    params = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0, num_draft_tokens=NUM_DRAFTS)
    try:
        with load(target, drafter) as engine:
            done = engine.generate(list(prompts), params)
    except NotEnoughMemoryError as error:
        return str(error)
    drafted, accepted = np.zeros(NUM_DRAFTS), np.zeros(NUM_DRAFTS)
    for one in done:
        drafted[: len(one.stats.drafted_at)] += one.stats.drafted_at
        accepted[: len(one.stats.accepted_at)] += one.stats.accepted_at
    tokens = sum(len(one.tokens) for one in done)
    rounds = sum(one.stats.rounds for one in done)
    return Drafting(
        prompts=len(done),
        tokens=tokens,
        acceptance_rate=float(accepted.sum() / max(1, drafted.sum())),
        acceptance_length=float((tokens - len(done)) / max(1, rounds)),  # less the prefills' own
        accepted_at=tuple((accepted / np.maximum(1, drafted)).tolist()),
    )


def _config(folder: Path) -> TargetConfig:
    return weights.read_target_config(folder)


def write_to_cards(folder: Path, drafter: Path | None, quality: Quality) -> None:
    """Put what was measured into the model cards of a converted pair. Raises MgmError."""
    drafting = drafting_section(quality)
    sections = {folder: f"{predictions_section(quality)}\n\n{drafting}"}
    if drafter is not None:
        sections[drafter] = drafting
    for of, section in sections.items():
        path = of / CARD
        try:
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            write_whole(path, with_quality(before, section).encode())
        except OSError as error:
            raise MgmError(f"cannot write {path}: {error.strerror}") from None


def predictions_section(quality: Quality) -> str:
    """How the target predicts beside its source, in Markdown."""
    header = ["text", "tokens", "perplexity of the source", "perplexity", "KL divergence, mean"]
    rows = [
        [
            of.text,
            str(of.tokens),
            _short(of.source_perplexity),
            _short(of.perplexity),
            f"{of.mean_divergence:.2g}",
            f"{of.divergence_99:.2g}",
            f"{of.same_top:.1%}",
        ]
        for of in quality.texts
    ]
    return (
        f"Beside {quality.source}, which it was made of. Both are computed in float32, so that "
        "the weights alone differ. The KL divergence is that of the predicted next tokens from the "
        "source's, in nats.\n\n" + table([*header, "99th percentile", "same top token"], rows)
    )


def drafting_section(quality: Quality) -> str:
    """How often drafts come true, before and after, in Markdown."""
    places = " / ".join(str(place) for place in range(1, NUM_DRAFTS + 1))
    header = ["pair", "prompts", "tokens", "acceptance rate", "tokens a round", f"draft {places}"]
    rows = []
    for pair, of in (("source", quality.source_drafting), ("this", quality.drafting)):
        if isinstance(of, str):
            rows.append([pair, f"not measured: {of}", "", "", "", ""])
            continue
        shares = " / ".join(f"{share:.2f}" for share in of.accepted_at)
        length = f"{of.acceptance_length:.2f}"
        rate = f"{of.acceptance_rate:.1%}"
        rows.append([pair, str(of.prompts), str(of.tokens), rate, length, shares])
    return (
        f"The drafter, in greedy decoding with {NUM_DRAFTS} drafts a round and at most "
        f"{ANSWER_TOKENS} tokens a prompt; each pair says its own texts:\n\n" + table(header, rows)
    )


def _short(perplexity: float) -> str:
    return f"{perplexity:.4f}" if perplexity < 100 else f"{perplexity:.0f}"
