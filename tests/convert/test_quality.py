"""`--quality` reports what the models compute: streamed, compared with each other, drafting."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_gemma_mtp.convert import quality
from mlx_gemma_mtp.convert.passage import Document
from mlx_gemma_mtp.convert.plan import Options
from mlx_gemma_mtp.convert.predictions import compare
from mlx_gemma_mtp.convert.quality import measure
from mlx_gemma_mtp.convert.streamed import final_hidden
from mlx_gemma_mtp.convert.verify import verify

from helpers.checkpoints import VOCAB, PairPaths
from helpers.command import Here
from helpers.converted import MOE, Converted
from mlx_gemma_mtp import Engine, SamplingParams, load
from mlx_gemma_mtp.demo.recipe.tasks import held_out
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import NotEnoughMemoryError, UsageError
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER
from mlx_gemma_mtp.files.weights import load_target, num_bytes
from mlx_gemma_mtp.model.cache import KVCache

NUM_PROMPTS = 8  # with short answers: MLX's CPU backend is slow
LENGTH = 40  # longer than any window of the tiny models
TOLERANCE = 1e-5


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return logits before the softcap [B, T, V], from a target that is whole in memory."""

    def run() -> np.ndarray:
        target = load_target(folder, dtype=mx.float32)
        batch, length = tokens.shape
        cache = KVCache.empty(target.config, batch, capacity=64, most=length, dtype=mx.float32)
        return np.array(target.logits(target(mx.array(tokens), cache)))

    return mlx_worker().run(run)


def test_streamed_logits_equal_the_targets(
    kind: str, pair: PairPaths, converted: Converted, rng: np.random.Generator
) -> None:
    tokens = rng.integers(0, VOCAB, (2, LENGTH))

    def streamed() -> np.ndarray:
        target, hidden = final_hidden(folder, mx.array(tokens))
        return np.array(target.logits(hidden))

    for folder in (pair.target, converted(kind, Options())):
        wanted = logits(folder, tokens)
        assert wanted.std() > 0.3  # flat logits would prove nothing
        assert np.abs(mlx_worker().run(streamed) - wanted).max() < TOLERANCE


@pytest.mark.parametrize(("kind", "layers"), [("31B", 12), ("E2B", 10)])
def test_one_layer_is_in_memory_at_a_time(
    kind: str, layers: int, pairs: dict[str, PairPaths], rng: np.random.Generator
) -> None:
    folder, tokens = pairs[kind].target, mx.array(rng.integers(0, VOCAB, (1, 4)))

    def measured() -> tuple[int, int]:
        size = num_bytes(load_target(folder))
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        final_hidden(folder, tokens)
        return mx.get_peak_memory() - before, size

    peak, size = mlx_worker().run(measured)
    assert peak < 2 * size / layers


def log_probabilities(folder: Path, document: Document) -> np.ndarray:
    """Return those of the tokens that count, from a target whole in memory: float64 [N, V]."""
    capped = 30 * np.tanh(logits(folder, np.array([document.tokens]))[0].astype(np.float64) / 30)
    found = capped - np.log(np.exp(capped).sum(-1, keepdims=True))
    return found[document.first - 1 : -1]


def test_perplexity_divergence_and_best_token_are_compared(
    pairs: dict[str, PairPaths], converted: Converted, rng: np.random.Generator
) -> None:
    def document(part: str, length: int, first: int) -> Document:
        return Document(part, rng.integers(0, VOCAB, length).tolist(), first)

    # Of several lengths, so that some are padded; in several groups and slices.
    documents = [document("a", LENGTH, 1), document("b", 9, 4), document("a", 17, 1)]
    source, other = pairs["E2B"].target, converted("E2B", Options())
    found = mlx_worker().run(
        lambda: compare(source, other, documents, num_positions=90, num_logits=7 * VOCAB)
    )
    assert [text.text for text in found] == ["a", "b"]
    for text in found:
        own = [document for document in documents if document.part == text.text]
        p, q = (
            np.concatenate([log_probabilities(folder, one) for one in own])
            for folder in (source, other)
        )
        actual = np.concatenate([one.tokens[one.first :] for one in own])[:, None]
        divergence = (np.exp(p) * (p - q)).sum(-1)
        perplexities = [np.exp(-np.take_along_axis(log, actual, 1).mean()) for log in (p, q)]
        divergences = divergence.mean(), np.percentile(divergence, 99)
        same_top = (p.argmax(-1) == q.argmax(-1)).mean()
        assert text.mean_divergence > 0.001  # quantizing does something to be measured
        wanted = [len(actual), *perplexities, *divergences, same_top]
        assert list(vars(text).values())[1:] == pytest.approx(wanted, rel=1e-4)

    # Unquantized weights predict the same; these experts are taken apart and put together again.
    source, other = pairs[MOE].target, converted(MOE, Options(bits="none"))
    (same,) = mlx_worker().run(lambda: compare(source, other, documents[:1]))
    assert same.perplexity == same.source_perplexity
    assert (same.mean_divergence, same.divergence_99, same.same_top) == (0, 0, 1)


@pytest.mark.parametrize("bits", ["8", "4"])
def test_the_demo_pair_keeps_its_answers_and_acceptance(bits: str, converted: Converted) -> None:
    single = [one for one in held_out(100) if len(one.messages) == 1 and len(one.answer) < 24]
    examples = [one for one in single if not one.tools and not one.thinking][:NUM_PROMPTS]
    params = SamplingParams(temperature=0, num_draft_tokens=3, max_tokens=40)
    with load(converted("demo", Options(bits=bits)), max_batch=4) as engine:
        done = engine.generate([one.messages[0]["content"] for one in examples], params)
    right = sum(one.check(answer.text) for one, answer in zip(examples, done, strict=True))
    assert right >= 0.9 * NUM_PROMPTS
    drafted = sum(answer.stats.drafted for answer in done)
    assert sum(answer.stats.accepted for answer in done) >= 0.85 * drafted


def test_quality_is_printed_and_written_into_the_cards(
    converted: Converted, tmp_path: Path, mgm_here: Here
) -> None:
    folder = shutil.copytree(converted("demo", Options()), tmp_path / "demo")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is 17 + 25?\n\nSpell the word river.\n")
    done = mgm_here("verify", folder, "--quality", "--tokens", "8", "--prompts", prompts, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["quality"]
    assert found["source"] == "demo"
    texts = {text["text"]: text["tokens"] for text in found["texts"]}
    assert texts == {"prose": 8, "answers": 8, "exercises": 8}
    params = SamplingParams(temperature=0, num_draft_tokens=3)
    with load(folder) as engine:
        done = engine.generate(prompts.read_text().split("\n\n"), params)
    drafting, drafted = found["drafting"], sum(one.stats.drafted for one in done)
    assert (drafting["prompts"], drafting["tokens"]) == (2, sum(len(one.tokens) for one in done))
    accepted = sum(one.stats.accepted for one in done)
    assert drafting["acceptance_rate"] == pytest.approx(accepted / drafted)
    card = re.sub(" +", " ", (folder / "README.md").read_text())
    assert "| exercises | 8 |" in card
    assert "Not measured" not in card
    assert "acceptance rate" in (folder / "drafter" / "README.md").read_text()
    assert [verdict.faults for verdict in verify(folder)] == [[], []]  # a card may change


def test_the_card_says_if_a_pair_does_not_fit_in_memory() -> None:
    def refuse(*_: object) -> Engine:
        raise NotEnoughMemoryError("it needs 63 GB; 24 GB available")

    found = quality.measure_drafting(DEMO, DEMO_DRAFTER, ["Hi"], load_pair=refuse)
    assert found == "it needs 63 GB; 24 GB available"
    section = quality.drafting_section(quality.Quality("demo", (), found, found))
    assert "not measured: it needs 63 GB" in section


def test_impossible_measurements_are_refused(
    pairs: dict[str, PairPaths], converted: Converted, tmp_path: Path
) -> None:
    demo = converted("demo", Options())
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\xfd")
    other = pairs["31B"].target
    for source, folder, options, words in (
        ("demo", demo, {"text": empty}, "is empty"),
        ("demo", demo, {"prompts": empty}, "is empty"),
        ("demo", demo, {"text": binary}, "cannot be read as text"),
        ("demo", demo, {"text": tmp_path / "none.txt"}, "cannot be read as text"),
        ("demo", demo, {"num_tokens": 0}, "1 or more"),
        ("demo", other, {}, "is not the model"),
        (other, other, {}, "no tokenizer"),
    ):
        with pytest.raises(UsageError, match=words):
            measure(source, folder, **options)
