"""What settings change in the logits, per row and in any batch, is what a plain loop would change.

Outputs are checked token by token against one pass over them and a loop in numpy. Drafts, copies
and other rows make no difference.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB
from helpers.control import HashRule, Ruled, assert_as_in_a_loop, logits_of, packed
from helpers.depths import AnyDepth
from helpers.fake_target import CONFIG, PARAMS, fake_pair, fake_player, output
from helpers.forced import Forced, Row, at_random
from helpers.plain import again
from helpers.random_pair import SUPPRESSED, random_pair
from helpers.traffic import tokens_of
from helpers.tying import TyingTarget, guess
from mlx_gemma_mtp import Chunk, Completion, SamplingParams
from mlx_gemma_mtp.decode.constraint import Mask
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Round
from mlx_gemma_mtp.decode.sampling import RowSettings
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.errors import GenerationError, UsageError
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache

NUM_TOKENS = 24
LIMITS = Limits(chunks=(64,), pause_seconds=np.inf, slot_step=1)
PLAIN = SamplingParams(temperature=1, top_k=0, top_p=1, max_tokens=NUM_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def pair(seed: int) -> OpenPair:
    return random_pair(np.random.default_rng([seed, 7]))


def some_bias(rng: np.random.Generator) -> dict[int, float]:
    ids = rng.choice(VOCAB, 20, replace=False).tolist()
    return dict(zip(ids, rng.choice([-100.0, -5.0, 3.0, 8.0], 20).tolist(), strict=True))


def some_params(rng: np.random.Generator) -> SamplingParams:
    """Some controls together, one alone or none, at temperature 0 or above."""
    wanted = rng.random(5) < rng.choice([0.0, 0.3, 1.0])
    top_k, top_p = ((0, 1.0), (40, 1.0), (64, 0.9))[rng.integers(3)]
    return replace(
        PLAIN,
        temperature=float(rng.choice([0.0, 1.0, 1.5])),
        top_k=top_k,
        top_p=top_p,
        seed=int(rng.integers(2**32)),
        min_p=float(rng.choice([0.02, 0.3])) if wanted[0] else 0.0,
        repetition_penalty=float(rng.choice([0.8, 1.3])) if wanted[1] else 1.0,
        presence_penalty=float(rng.choice([-1.0, 1.5])) if wanted[2] else 0.0,
        frequency_penalty=float(rng.choice([-0.5, 0.7])) if wanted[3] else 0.0,
        logit_bias=some_bias(rng) if wanted[4] else {},
    )


def some_rows(rng: np.random.Generator, count: int) -> list[Row]:
    lengths = rng.integers(1, 40, count)
    # Few different tokens, so that prompt and output repeat some.
    return [
        Row(rng.integers(0, VOCAB, length).tolist(), some_params(rng), []) for length in lengths
    ]


def generated(
    pair: OpenPair,
    rows: Sequence[Row],
    drafts: int | str,
    rules: dict[int, Any],
    **options: Any,
) -> list[Completion]:
    with Ruled(pair, limits=LIMITS, **options) as engine:
        engine.rules = rules
        return again(engine, rows, NUM_TOKENS, [drafts] * len(rows))  # type: ignore[list-item]


def check(pair: OpenPair, rng: np.random.Generator, *, constrained: bool) -> None:
    """Rows write what a loop writes: plainly, and the same with drafts, copies and any division."""
    rows = some_rows(rng, int(rng.integers(1, 9)))
    rules = dict[int, Any]()
    for row in rows[::2] if constrained else []:
        assert row.params.seed is not None
        barred = [*SUPPRESSED, *row.params.logit_bias]
        rules[row.params.seed] = partial(HashRule, row.params.seed, VOCAB, barred)
    plain = generated(pair, rows, 0, rules)
    rows = [row._replace(tokens=one.tokens) for row, one in zip(rows, plain, strict=True)]
    decided = list[bool]()
    for row in rows:
        rule = rules[row.params.seed]() if row.params.seed in rules else None
        decided.append(assert_as_in_a_loop(pair, row.prompt, row.params, row.tokens, rule))
    forced = Forced(rng, rows, at_random(rng, rows, rate=0.85))
    player = partial(round_player, draft=forced)
    every: list[tuple[int | str, dict[str, Any]]] = [
        (int(rng.integers(1, 9)), {"player": player, "copies": False}),
        ("auto", {"player": player, "depth": AnyDepth(rng, 8)}),
        (int(rng.integers(1, 4)), {}),
        ("auto", {}),
    ]
    for drafts, options in every:
        done = generated(pair, rows, drafts, rules, **options)
        for one, row, sure in zip(done, rows, decided, strict=True):
            if sure:
                assert one.tokens == row.tokens, f"{drafts} drafts, {row.params}"
        if drafts != "auto" and options:
            assert sum(one.stats.accepted for one in done) > 0


@pytest.mark.parametrize("turn", range(3))
def test_penalties_biases_and_min_p_are_those_of_a_plain_loop(
    pair: OpenPair, rng: np.random.Generator, turn: int
) -> None:
    check(pair, rng, constrained=False)


@pytest.mark.parametrize("turn", range(3))
def test_a_constraint_holds_at_every_token_and_drafts_change_nothing(
    pair: OpenPair, rng: np.random.Generator, turn: int
) -> None:
    check(pair, rng, constrained=True)


class Tying(TyingTarget):
    """Says how many tokens it has."""

    config = replace(CONFIG, vocab_size=4096)


@pytest.mark.parametrize("drafts", [0, 3])
def test_choices_that_are_not_sure_are_made_again_with_all_control(
    drafts: int, rng: np.random.Generator
) -> None:
    pair = fake_pair(Tying(rng))
    rounds = list[bool]()

    def free_guess(*others: Any) -> mx.array:
        *models, settings, num_steps = others
        return guess(*models, settings._replace(control=None, masks=None), num_steps)

    def player(*models: Any, whole: bool) -> RoundPlayer:
        halves = round_player(*models, draft=free_guess)

        def verify(cache: KVCache, newest: Any, settings: RowSettings, *others: Any) -> Round:
            settings = settings._replace(full=settings.full or whole)
            rounds.append(settings.full)
            return halves.verify(cache, newest, settings, *others)

        return halves._replace(verify=verify)

    rows = [
        Row(
            rng.integers(0, 97, 5).tolist(),
            replace(some_params(rng), seed=seed, top_k=5, temperature=1, logit_bias={7: 1.0}),
            [],
        )
        for seed in range(4)
    ]
    rules = {seed: partial(HashRule, seed, 4096, [7]) for seed in (1, 2)}
    whole = generated(pair, rows, 0, rules, player=partial(player, whole=True))
    rounds.clear()
    found = generated(pair, rows, drafts, rules, player=partial(player, whole=False))
    assert [one.tokens for one in found] == [one.tokens for one in whole]
    assert {*rounds} == {False, True}


def test_rows_without_control_write_the_same_next_to_others(
    pair: OpenPair, rng: np.random.Generator
) -> None:
    """Also those whose logits are beyond what the softcap tells apart."""
    rows = [
        Row(rng.integers(0, VOCAB, 9).tolist(), replace(PLAIN, seed=n, temperature=n % 2), [])
        for n in range(4)
    ]
    others = some_rows(rng, 4)
    changes = {"seed": 99, "logit_bias": {5: 1.0}, "logprobs": 3, "min_p": 0.1, "temperature": 1}
    others[0] = others[0]._replace(params=replace(others[0].params, **changes))
    others[1] = others[1]._replace(params=replace(others[1].params, frequency_penalty=1.0))
    rules = {99: partial(HashRule, 99, VOCAB, SUPPRESSED)}
    alone = generated(pair, rows, 2, {})
    mixed = generated(pair, [*others, *rows], 2, rules)[4:]
    assert [one.tokens for one in mixed] == [one.tokens for one in alone]


def test_rows_that_come_and_go_keep_their_counts(pair: OpenPair, rng: np.random.Generator) -> None:
    rows = some_rows(rng, 12)
    params = [
        replace(row.params, presence_penalty=1.0, max_tokens=int(rng.integers(2, 24)))
        for row in rows
    ]
    params[5] = replace(PLAIN, seed=5, max_tokens=24)
    with Ruled(pair, limits=replace(LIMITS, shrink_after=2), max_batch=4) as engine:
        done = engine.generate([row.prompt for row in rows], params)
    for row, own, one in zip(rows, params, done, strict=True):
        assert_as_in_a_loop(pair, row.prompt, own, one.tokens)


def test_log_probabilities_are_those_of_a_plain_pass(
    pair: OpenPair, rng: np.random.Generator
) -> None:
    asked = [0, 5, 20, None, 3]
    rows = [
        row._replace(params=replace(row.params, logprobs=count))
        for row, count in zip(some_rows(rng, 5), asked, strict=True)
    ]
    chunks: dict[int, list[Chunk]] = {number: [] for number in range(5)}
    rows[1] = rows[1]._replace(params=replace(rows[1].params, seed=1, logit_bias={}))
    rules = {1: partial(HashRule, 1, VOCAB, SUPPRESSED)}
    for drafts, given in ((0, {}), (3, rules)):
        done = generated(pair, rows, drafts, given)
        for row, count, one in zip(rows, asked, done, strict=True):
            if count is None:
                assert one.logprobs is None
                continue
            assert row.params.seed is not None
            capped = logits_of(pair, row.prompt, one.tokens, row.params.seed).capped
            expected = capped - np.log(np.exp(capped).sum(-1, keepdims=True))
            assert one.logprobs is not None
            assert len(one.logprobs) == len(one.tokens)
            for token, found, at in zip(one.tokens, one.logprobs, expected, strict=True):
                assert found.token == token
                assert found.logprob == pytest.approx(at[token], abs=1e-4)
                best = np.sort(at)[::-1][:count]
                assert [value for _, value in found.top] == pytest.approx(best, abs=1e-4)
                assert [value for _, value in found.top] == pytest.approx(
                    [at[one] for one, _ in found.top], abs=1e-4
                )
    with Ruled(pair, limits=LIMITS) as engine:
        for number, row in enumerate(rows):
            engine.submit(row.prompt, row.params, chunks[number].append).result()
    for number, count in enumerate(asked):
        for chunk in chunks[number]:
            assert (chunk.logprobs is None) == (count is None)
            if chunk.logprobs is not None:
                assert [one.token for one in chunk.logprobs] == chunk.tokens
        assert len(tokens_of(chunks[number])) == NUM_TOKENS


class Fails(HashRule):
    """A rule that ends, after some tokens."""

    def __init__(self, after: int) -> None:
        super().__init__(0, 97)
        self._after = after

    def masks(self, tokens: Sequence[int]) -> list[Mask | None]:
        if len(self.tokens) >= self._after:
            raise UsageError("nothing is allowed")
        return [None] * (len(tokens) + 1)

    def accept(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("drafts", [0, 3])
def test_a_constraint_that_fails_ends_its_request_alone(after: int, drafts: int) -> None:
    with Ruled(fake_pair(), player=fake_player) as engine:
        engine.rules = {1: partial(Fails, after)}
        params = [replace(PARAMS, seed=seed, num_draft_tokens=drafts) for seed in (1, 2, 3)]
        running = [engine.submit([5, 6, 7], one) for one in params]
        with pytest.raises(UsageError, match="nothing is allowed"):
            running[0].result()
        for one in running[1:]:
            assert one.result().tokens == output([5, 6, 7], 16)
        assert engine.generate([8, 9], PARAMS)[0].tokens == output([8, 9], 16)


class Only(HashRule):
    """Allows these tokens."""

    def __init__(self, *tokens: int) -> None:
        super().__init__(0, 97)
        self._only = np.isin(np.arange(97), tokens)

    def allowed(self, prefix: Sequence[int]) -> np.ndarray | None:
        return self._only if prefix else None


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_request_that_bars_all_that_is_allowed_fails(temperature: float) -> None:
    pair = fake_pair()._replace(defaults={"suppress_tokens": [7]})
    with Ruled(pair, player=fake_player) as engine:
        engine.rules = {1: partial(Only, 6, 7), 2: partial(Only, 5, 6)}
        params = replace(PARAMS, seed=1, temperature=temperature)
        barred = {6: -100.0}
        with pytest.raises(UsageError, match="logit_bias"):
            engine.generate([5], replace(params, logit_bias=barred))
        every = dict.fromkeys([token for token in range(97) if token != 7], -100.0)
        with pytest.raises(UsageError, match="logit_bias"):
            engine.generate([5], replace(params, seed=3, logit_bias=every))
        (done,) = engine.generate([5], params)
        assert done.tokens[1:] == [6] * 15
        (done,) = engine.generate([5], replace(params, seed=2, logit_bias=barred))
        assert done.tokens[1:] == [5] * 15


def test_a_bias_for_a_token_that_does_not_exist_is_refused() -> None:
    with (
        Ruled(fake_pair(), player=fake_player) as engine,
        pytest.raises(UsageError, match="logit_bias: 97"),
    ):
        engine.submit([5], replace(PARAMS, logit_bias={96: 1.0, 97: 1.0}))


def test_an_error_in_accepting_tokens_ends_its_request_alone() -> None:
    class Refuses(Fails):
        def accept(self, tokens: Sequence[int]) -> None:
            raise RuntimeError("refused")

    with Ruled(fake_pair(), player=fake_player) as engine:
        engine.rules = {1: partial(Refuses, 9)}
        running = [engine.submit([5], replace(PARAMS, seed=seed)) for seed in (1, 2)]
        with pytest.raises(GenerationError, match="refused"):
            running[0].result()
        assert running[1].result().tokens == output([5], 16)


def test_copies_that_are_not_allowed_are_cut(rng: np.random.Generator) -> None:
    """The text repeats itself; the rule wants it so at first, and then no longer."""

    class Repeats(HashRule):
        def allowed(self, prefix: Sequence[int]) -> np.ndarray | None:
            turn = len(prefix) % 11 if len(prefix) < 70 or len(prefix) % 5 else len(prefix) % 13
            return np.isin(np.arange(97), turn)

        def forced(self, count: int) -> list[int]:
            return []

    with Ruled(fake_pair()._replace(drafter=None), player=fake_player) as engine:
        engine.rules = {1: partial(Repeats, 0, 97)}
        (done,) = engine.generate([5], replace(PARAMS, seed=1, max_tokens=120))
        (plain,) = engine.generate([5], replace(PARAMS, seed=1, max_tokens=120, num_draft_tokens=0))
    assert done.tokens == plain.tokens
    assert 0 < done.stats.copies_accepted < done.stats.copies_drafted
    assert packed(np.array([True])) == [1]


def test_forced_tokens_are_drafts_that_need_no_drafter_and_are_all_accepted() -> None:
    class Forces(HashRule):
        """Forces seven tokens of eight."""

        def allowed(self, prefix: Sequence[int]) -> np.ndarray | None:
            return np.isin(np.arange(97), len(prefix) ** 2 % 97) if len(prefix) % 8 else None

    params = replace(PARAMS, seed=1, max_tokens=65, num_draft_tokens=7)
    with Ruled(fake_pair(), player=fake_player) as engine:
        engine.rules = {1: partial(Forces, 0, 97)}
        (done,) = engine.generate([5], params)
        (plain,) = engine.generate([5], replace(params, num_draft_tokens=0))
    assert done.tokens == plain.tokens
    assert done.stats.copies_accepted == done.stats.accepted == done.stats.drafted == 56
    assert (done.stats.rounds, plain.stats.rounds) == (8, 64)
