"""The runtime computes what Transformers does: live, in float32, on fresh random weights."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

import mlx_gemma_mtp
from helpers import reference
from helpers.checkpoints import KINDS, VOCAB, PairPaths
from helpers.logits import assert_logits_agree
from helpers.rounds import MOST, Models, load_models
from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.round import Layout, Newest, draft, first_token, prefill, verify
from mlx_gemma_mtp.decode.sampling import row_settings
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target

NUM_STEPS = 4
CHUNKS = (3, 16, 1, 9, 13)  # repeated: no border before 104 is a multiple of a window
GREEDY = row_settings([SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)])


@pytest.fixture(scope="module")
def models(pair: PairPaths) -> Models:
    return load_models(pair)


def chunks(ids: Sequence[int]) -> list[mx.array]:
    """ids in uneven pieces [1, T] of at most MOST."""
    borders = [border for border in np.cumsum(CHUNKS * 3).tolist() if border < len(ids)]
    return mx.split(mx.array([ids]), borders, axis=1)


def new_cache(target: Target) -> KVCache:
    return KVCache.empty(target.config, 1, capacity=256, most=MOST, dtype=mx.float32)


def committed(target: Target, ids: Sequence[int]) -> tuple[KVCache, Newest]:
    """A cache that holds ids, prefilled in chunks, and the greedy token after them."""
    cache = new_cache(target)
    start = 0
    for piece in chunks(ids):
        hidden = prefill(target, cache, piece, start, [piece.size])
        start += piece.size
    return cache, first_token(target, cache, hidden, GREEDY).newest


def assert_drafts_equal(
    models: Models,
    cache: KVCache,
    newest: Newest,
    expected: reference.Draft,
    position_offset: int = -1,
) -> None:
    """Each chained draft step has the candidates and logits of Transformers'."""
    target, drafter = models
    assert newest.token.tolist() == [expected.newest]
    shared = cache.shared(drafter.config)
    position = cache.offset + position_offset
    token, hidden, _ = newest
    for step in range(NUM_STEPS):
        state, hidden = drafter(target.embed(token[:, None]), hidden, shared, position)
        logits, ids = drafter.candidates(state)
        found = np.arange(VOCAB) if ids is None else np.array(ids)[0, 0]
        if drafter.config.use_ordered_embeddings:
            assert len(set(found.tolist())) == len(found)
            assert set(found.tolist()) == expected.candidates(step)
        scores = np.array(logits)[0, 0]
        assert_logits_agree(scores, expected.logits[step][found], f"step {step}")
        token = mx.array([int(found[scores.argmax()])])
    if position_offset == drafter.config.query_position:
        drafts = draft(*models, cache, newest, GREEDY, NUM_STEPS)
        assert drafts.tolist() == [expected.tokens]


def test_every_kind_is_tested(pairs: dict[str, PairPaths]) -> None:
    assert tuple(pairs) == KINDS


def test_target_logits_past_the_window_equal_transformers(
    pair: PairPaths, models: Models, rng: np.random.Generator
) -> None:
    # At least 70 positions: the ring of a sliding layer (32 slots) wraps twice.
    ids, expected = reference.decisive(
        lambda ids: reference.target_logits(pair.target, ids), rng, rng.integers(70, 90)
    )
    target = models.target
    cap = target.config.final_logit_softcapping
    cache = new_cache(target)
    got = []
    for piece in chunks(ids):
        logits = target.logits(target(piece, cache))
        cache.offset = cache.offset + piece.shape[1]
        got.append(np.array(mx.tanh(logits / cap) * cap)[0])
    assert expected.std() > 1  # flat logits would prove nothing
    assert_logits_agree(np.concatenate(got), expected)


@pytest.mark.parametrize("position_offset", [-1, 0])
@pytest.mark.parametrize("length", ["one", "window", "window + 1", "long"])
def test_each_draft_step_equals_transformers(
    pair: PairPaths, models: Models, rng: np.random.Generator, length: str, position_offset: int
) -> None:
    window = models.target.config.sliding_window
    sizes = {"one": 1, "window": window, "window + 1": window + 1, "long": rng.integers(70, 90)}
    ids, expected = reference.decisive(
        lambda ids: reference.draft(*pair, ids, NUM_STEPS, position_offset), rng, sizes[length]
    )
    assert_drafts_equal(models, *committed(models.target, ids), expected, position_offset)


@pytest.mark.parametrize("num_accepted", [0, 2, 4])
def test_drafts_after_a_round_equal_those_after_the_accepted_text(
    pair: PairPaths, models: Models, rng: np.random.Generator, num_accepted: int
) -> None:
    """After a round, all is as in Transformers after a forward over the accepted text alone.

    The drafter sees nothing of rejected positions, and the hidden state is the one that chose the
    newest token.
    """

    def text_and_drafts(prompt: list[int]) -> tuple[list[int], reference.Draft]:
        text = list(prompt)
        for _ in range(num_accepted + 1):
            text.append(reference.draft(*pair, text, 0).newest)
        return text, reference.draft(*pair, text, NUM_STEPS)

    prompt, (text, expected) = reference.decisive(text_and_drafts, rng, 75)
    cache, newest = committed(models.target, prompt)
    true = [*text[len(prompt) + 1 :], expected.newest]
    wrong = [(true[-1] + 1) % VOCAB] * 5
    drafts = mx.array([[*true[:-1], *wrong]])
    layout = Layout(mx.array([15]), packing=None)
    round_ = verify(models.target, cache, newest, GREEDY, layout, drafts)
    assert round_.accepted.tolist() == [num_accepted]
    assert cache.offset.tolist() == [len(text)]
    assert round_.tokens[0, : num_accepted + 1].tolist() == true
    assert_drafts_equal(models, cache, round_.newest, expected)


def test_64_greedy_tokens_equal_transformers(pair: PairPaths, rng: np.random.Generator) -> None:
    found = [
        reference.decisive(lambda ids: reference.greedy(pair.target, ids, 64), rng, length)
        for length in (3, 61)
    ]
    params = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True, num_draft_tokens=3)
    with mlx_gemma_mtp.load(pair.target, pair.drafter) as engine:
        done = engine.generate([prompt for prompt, _ in found], params)
    assert [one.tokens for one in done] == [text for _, text in found]
