"""What --quality says is what the models say: streamed, compared with each other, drafted with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_gemma_mtp.convert import predictions, quality
from mlx_gemma_mtp.convert.conversion import convert
from mlx_gemma_mtp.convert.passage import Document, at_most
from mlx_gemma_mtp.convert.plan import Options
from mlx_gemma_mtp.convert.predictions import TextQuality, compare
from mlx_gemma_mtp.convert.quality import measure
from mlx_gemma_mtp.convert.streamed import final_hidden
from mlx_gemma_mtp.convert.verify import verify

from helpers.checkpoints import VOCAB, PairPaths
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.cli import main
from mlx_gemma_mtp.demo.recipe.tasks import held_out
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import NotEnoughMemoryError, UsageError
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.files.weights import load_target
from mlx_gemma_mtp.model.cache import KVCache

NUM_PROMPTS = 8  # with short answers: MLX's CPU backend takes its time
LENGTH = 40  # longer than any window of the tiny models
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def quantized(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, PairPaths]
) -> Callable[[str], Path]:
    """The folder of a kind's pair, converted to 4 bits."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("quantized") / kind
            convert(pairs[kind].target, made[kind], Options(bits="4"))
        return made[kind]

    return of


def streamed_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Before the softcap: [B, T, V]."""

    def run() -> np.ndarray:
        target, hidden = final_hidden(folder, mx.array(tokens))
        return np.array(target.logits(hidden))

    return mlx_worker().run(run)


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """The same, of a target that is in memory whole."""

    def run() -> np.ndarray:
        target = load_target(folder, dtype=mx.float32)
        batch, length = tokens.shape
        cache = KVCache.empty(target.config, batch, capacity=64, most=length, dtype=mx.float32)
        return np.array(target.logits(target(mx.array(tokens), cache)))

    return mlx_worker().run(run)


def test_streamed_logits_are_the_targets(
    kind: str, pair: PairPaths, quantized: Callable[[str], Path], rng: np.random.Generator
) -> None:
    tokens = rng.integers(0, VOCAB, (2, LENGTH))
    for folder in (pair.target, quantized(kind)):
        wanted = logits(folder, tokens)
        assert wanted.std() > 0.3  # flat logits would prove nothing
        assert np.abs(streamed_logits(folder, tokens) - wanted).max() < TOLERANCE


@pytest.mark.parametrize(("kind", "layers"), [("31B", 12), ("E2B", 10)])
def test_one_layer_is_in_memory_at_a_time(
    kind: str, layers: int, pairs: dict[str, PairPaths], rng: np.random.Generator
) -> None:
    folder, tokens = pairs[kind].target, mx.array(rng.integers(0, VOCAB, (1, 4)))

    def measured() -> tuple[int, int]:
        weights = sum(
            array.nbytes for array in dict(tree_flatten(load_target(folder).parameters())).values()
        )
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        final_hidden(folder, tokens)
        return mx.get_peak_memory() - before, weights

    peak, weights = mlx_worker().run(measured)
    assert peak < 2 * weights / layers


def log_probabilities(folder: Path, document: Document) -> np.ndarray:
    """Of the tokens that count, from a target that is in memory whole: float64 [N, V]."""
    capped = 30 * np.tanh(logits(folder, np.array([document.tokens]))[0].astype(np.float64) / 30)
    found = capped - np.log(np.exp(capped).sum(-1, keepdims=True))
    return found[document.first - 1 : -1]


def test_what_is_compared_is_perplexity_divergence_and_best_token(
    pairs: dict[str, PairPaths],
    quantized: Callable[[str], Path],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def document(part: str, length: int, first: int) -> Document:
        return Document(part, rng.integers(0, VOCAB, length).tolist(), first)

    # Of several lengths, so that some are padded; in more than one group and slice.
    documents = [document("a", LENGTH, 1), document("b", 9, 4), document("a", 17, 1)]
    monkeypatch.setattr(predictions, "GROUP", 90)
    monkeypatch.setattr(predictions, "SLICE", 7 * VOCAB)
    source, converted = pairs["E2B"].target, quantized("E2B")
    found = mlx_worker().run(lambda: compare(source, converted, documents))
    assert [text.text for text in found] == ["a", "b"]
    for text in found:
        own = [document for document in documents if document.part == text.text]
        p, q = (
            np.concatenate([log_probabilities(folder, one) for one in own])
            for folder in (source, converted)
        )
        actual = np.concatenate([one.tokens[one.first :] for one in own])[:, None]
        divergence = (np.exp(p) * (p - q)).sum(-1)
        wanted = TextQuality(
            text.text,
            tokens=len(actual),
            source_perplexity=np.exp(-np.take_along_axis(p, actual, 1).mean()),
            perplexity=np.exp(-np.take_along_axis(q, actual, 1).mean()),
            mean_divergence=divergence.mean(),
            divergence_99=np.percentile(divergence, 99),
            same_top=(p.argmax(-1) == q.argmax(-1)).mean(),
        )
        assert text.mean_divergence > 0.001  # quantizing does something to be measured
        for key, value in vars(wanted).items():
            assert (
                getattr(text, key) == value
                if key == "text"
                else pytest.approx(value, rel=1e-4) == getattr(text, key)
            ), key


def test_weights_that_only_moved_predict_the_same(
    pairs: dict[str, PairPaths], tmp_path: Path, rng: np.random.Generator
) -> None:
    converted = tmp_path / "unquantized"
    source = pairs["26B-A4B"].target  # whose experts are taken apart and put together again
    convert(source, converted, Options(bits="none"))
    document = Document("a", rng.integers(0, VOCAB, LENGTH).tolist(), 1)
    (found,) = mlx_worker().run(lambda: compare(source, converted, [document]))
    assert found.perplexity == found.source_perplexity
    assert (found.mean_divergence, found.divergence_99, found.same_top) == (0, 0, 1)


def test_so_many_tokens_of_each_text_count() -> None:
    documents = [Document("a", [*range(9)], 1), Document("a", [*range(9)], 1)]
    documents += [Document("b", [*range(9)], 7), Document("b", [*range(9)], 7)]
    kept = at_most(documents, 10)
    assert [(one.part, len(one.tokens) - one.first) for one in kept] == [
        ("a", 8),
        ("a", 2),
        ("b", 2),
        ("b", 2),
    ]


# The demo pair, as people would use it


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The demo pair, converted to these bits."""
    made: dict[str, Path] = {}

    def of(bits: str) -> Path:
        if bits not in made:
            made[bits] = tmp_path_factory.mktemp("demo") / f"demo-{bits}bit"
            convert("demo", made[bits], Options(bits=bits))
        return made[bits]

    return of


@pytest.mark.parametrize("bits", ["8", "4"])
def test_the_demo_pair_keeps_what_it_can(bits: str, demo: Callable[[str], Path]) -> None:
    examples = [
        one
        for one in held_out(100)
        if len(one.messages) == 1 and len(one.answer) < 24 and not one.tools and not one.thinking
    ][:NUM_PROMPTS]
    params = SamplingParams(temperature=0, num_draft_tokens=3, max_tokens=40)
    with load(demo(bits), max_batch=4) as engine:
        done = engine.generate([one.messages[0]["content"] for one in examples], params)
    right = sum(one.check(answer.text) for one, answer in zip(examples, done, strict=True))
    assert right >= 0.9 * NUM_PROMPTS
    drafted = sum(answer.stats.drafted for answer in done)
    assert sum(answer.stats.accepted for answer in done) >= 0.85 * drafted


def test_quality_is_printed_and_written_into_the_cards(
    demo: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(demo("4"), tmp_path / "demo")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is 17 + 25?\n\nSpell the word river.\n")
    arguments = ["verify", str(folder), "--quality", "--tokens", "8", "--prompts", str(prompts)]
    monkeypatch.setattr("sys.argv", ["mgm", *arguments, "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    found = json.loads(capsys.readouterr().out)["quality"]
    assert found["source"] == "demo"
    assert [(text["text"], text["tokens"]) for text in found["texts"]] == [
        ("prose", 8),
        ("answers", 8),
        ("exercises", 8),
    ]
    params = SamplingParams(temperature=0, num_draft_tokens=3)
    with load(folder) as engine:
        done = engine.generate(prompts.read_text().split("\n\n"), params)
    assert found["drafting"]["prompts"] == 2
    assert found["drafting"]["tokens"] == sum(len(one.tokens) for one in done)
    drafted = sum(one.stats.drafted for one in done)
    accepted = sum(one.stats.accepted for one in done)
    assert found["drafting"]["acceptance_rate"] == pytest.approx(accepted / drafted)
    card = (folder / "README.md").read_text()
    assert "| exercises | 8" in card
    assert "Not measured" not in card
    assert "acceptance rate" in (folder / "drafter" / "README.md").read_text()
    assert verify(folder).all_faults == ()  # a card may change


def test_where_a_pair_does_not_fit_the_card_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotEnoughMemoryError("it needs 63 GB, and there are 24 GB")

    monkeypatch.setattr(quality, "compare", lambda *_, **__: [])
    monkeypatch.setattr(quality, "load", refuse)
    found = measure("demo", hub.DEMO, num_tokens=1)
    assert found.source_drafting == "it needs 63 GB, and there are 24 GB"
    assert "not measured: it needs 63 GB" in quality.drafting_section(found)


def test_what_cannot_be_measured_is_refused(
    pairs: dict[str, PairPaths], demo: Callable[[str], Path], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\xfd")
    for folder, options, words in (
        (demo("4"), {"text": empty}, "is empty"),
        (demo("4"), {"prompts": empty}, "is empty"),
        (demo("4"), {"text": binary}, "cannot be read as text"),
        (demo("4"), {"text": tmp_path / "none.txt"}, "cannot be read as text"),
        (demo("4"), {"num_tokens": 0}, "1 or more"),
        (pairs["31B"].target, {}, "another model"),
    ):
        with pytest.raises(UsageError, match=words):
            measure("demo", folder, **options)
    with pytest.raises(UsageError, match="no tokenizer"):
        measure(pairs["31B"].target, pairs["31B"].target)
