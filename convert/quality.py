"""What quantizing cost: predictions of the target and acceptance of the drafter, before and after.

Predictions are compared on a text, streamed, so that any size works. Acceptance is that of real
decoding, if the pair fits in memory. Knows nothing of manifests or of the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mlx_gemma_mtp import Engine, SamplingParams, load
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, MgmError, NotEnoughMemoryError, UsageError
from mlx_gemma_mtp.files.atomic import write_whole
from mlx_gemma_mtp.files.checkpoint import read_target_config
from mlx_gemma_mtp.files.find import find_pair
from mlx_gemma_mtp.files.names import is_folder
from mlx_gemma_mtp.progress import Update
from mlx_gemma_mtp.show import table
from mlx_gemma_mtp.text.tokenizer import Text

from . import passage
from .card import CARD, with_quality
from .predictions import TextQuality, compare

NUM_DRAFT_TOKENS = 3
ANSWER_TOKENS = 128  # maximum per prompt


@dataclass(frozen=True)
class Drafting:
    """How many drafts were accepted in greedy decoding, NUM_DRAFT_TOKENS per round."""

    prompts: int
    tokens: int
    acceptance_rate: float  # accepted / drafted
    acceptance_length: float  # tokens per round
    accepted_at: tuple[float, ...]  # share of the drafts at each position that was accepted


@dataclass(frozen=True)
class Quality:
    """The result of `measure`. A text instead of a Drafting says why it was not measured."""

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
    on_progress: Update = lambda *_: None,
) -> Quality:
    """Compare the pair in a folder with the one it was made from.

    source: a folder or a Hub name. text: a file to read instead of the shipped text. prompts: a
    file with one prompt per line, instead of the shipped text's questions. num_tokens: maximum of
    each text. Raises UsageError, CheckpointError, ModelNotFoundError.
    """
    if num_tokens is not None and num_tokens < 1:
        raise UsageError(f"--tokens must be 1 or more, not {num_tokens}")
    pairs = find_pair(source, "auto"), find_pair(folder, "auto")
    configs = [read_target_config(target) for target, _ in pairs]
    if configs[0] != configs[1]:
        raise UsageError(f"{source} is not the model that {folder} was made from")
    if not (folder / "tokenizer.json").exists():
        raise UsageError(f"{folder} has no tokenizer, which measuring needs")
    tokenizer = Text(folder)
    asked = passage.questions() if prompts is None else passage.read_prompts(prompts)
    documents = passage.shipped(tokenizer) if text is None else passage.read_text(tokenizer, text)
    if num_tokens is not None:
        documents = passage.at_most(documents, num_tokens)
    if max(max(document.tokens) for document in documents) >= configs[1].vocab_size:
        raise CheckpointError(f"{folder}: its tokenizer has tokens beyond the config's vocab_size")
    texts = mlx_worker().run(partial(compare, pairs[0][0], pairs[1][0], documents, on_progress))
    drafting: list[Drafting | str] = []
    for target, drafter in pairs:
        on_progress("drafting", len(drafting), len(pairs))
        drafting.append(measure_drafting(target, drafter, asked))
    name = Path(source).resolve().name if is_folder(source) else str(source)
    return Quality(name, tuple(texts), *drafting)


def measure_drafting(
    target: Path,
    drafter: Path | None,
    prompts: Sequence[str],
    *,
    load_pair: Callable[[Path, Path], Engine] = load,
) -> Drafting | str:
    """Decode greedily with a drafter; return its acceptance, or why that could not be measured."""
    if drafter is None:
        return "it has no drafter"
    params = SamplingParams(
        max_tokens=ANSWER_TOKENS, temperature=0, num_draft_tokens=NUM_DRAFT_TOKENS
    )
    try:
        with load_pair(target, drafter) as engine:
            done = engine.generate(list(prompts), params)
    except NotEnoughMemoryError as error:
        return str(error)
    drafted, accepted = np.zeros((2, NUM_DRAFT_TOKENS))
    for one in done:
        drafted[: len(one.stats.drafted_at)] += one.stats.drafted_at
        accepted[: len(one.stats.accepted_at)] += one.stats.accepted_at
    tokens = sum(len(one.tokens) for one in done)
    rounds = sum(one.stats.rounds for one in done)
    return Drafting(
        prompts=len(done),
        tokens=tokens,
        acceptance_rate=float(accepted.sum() / max(1, drafted.sum())),
        # Without each completion's first token, which the prefill gives.
        acceptance_length=float((tokens - len(done)) / max(1, rounds)),
        accepted_at=tuple((accepted / np.maximum(1, drafted)).tolist()),
    )


def write_to_cards(target: Path, drafter: Path | None, quality: Quality) -> None:
    """Put the results into the model cards of a converted pair. Raises MgmError."""
    drafting = drafting_section(quality)
    sections = {target: f"{predictions_section(quality)}\n\n{drafting}"}
    if drafter is not None:
        sections[drafter] = drafting
    for folder, section in sections.items():
        path = folder / CARD
        try:
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            write_whole(path, with_quality(before, section).encode())
        except OSError as error:
            raise MgmError(f"cannot write {path}: {error.strerror}") from None


def predictions_section(quality: Quality) -> str:
    """Return the target's predictions compared with its source's, in Markdown."""
    header = ("text", "tokens", "source perplexity", "perplexity")
    divergence = ("KL divergence, mean", "99th percentile", "same top token")
    rows = []
    for found in quality.texts:
        perplexities = f"{found.source_perplexity:,.4f}", f"{found.perplexity:,.4f}"
        divergences = f"{found.mean_divergence:.2g}", f"{found.divergence_99:.2g}"
        own = f"{found.same_top:.1%}"
        rows.append((found.text, str(found.tokens), *perplexities, *divergences, own))
    return (
        f"Compared with {quality.source}, its source. Both are computed in float32, so that only "
        "the weights differ. The KL divergence is that of the next-token predictions from the "
        "source's, in nats.\n\n" + table((*header, *divergence), rows, markdown=True)
    )


def drafting_section(quality: Quality) -> str:
    """Return the acceptance before and after, in Markdown."""
    positions = " / ".join(str(position) for position in range(1, NUM_DRAFT_TOKENS + 1))
    header = ("pair", "prompts", "tokens", "acceptance rate", "tokens per round")
    rows = []
    for pair, found in (("source", quality.source_drafting), ("this", quality.drafting)):
        if isinstance(found, str):
            rows.append((f"{pair}, not measured: {found}", "", "", "", "", ""))
            continue
        shares = " / ".join(f"{share:.2f}" for share in found.accepted_at)
        length, rate = f"{found.acceptance_length:.2f}", f"{found.acceptance_rate:.1%}"
        rows.append((pair, str(found.prompts), str(found.tokens), rate, length, shares))
    return (
        f"The drafter in greedy decoding, with {NUM_DRAFT_TOKENS} draft tokens per round and at "
        f"most {ANSWER_TOKENS} tokens per prompt. Each pair generates its own text.\n\n"
        + table((*header, f"accepted at {positions}"), rows, markdown=True)
    )
