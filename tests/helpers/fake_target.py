"""A fake pair whose output is known in closed form: for tests without torch or checkpoints.

The fake target reads earlier tokens from the real cache, all of them in a full-attention layer and
the last WINDOW in a sliding one. So a wrong slot, mask, row or rollback changes the output.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from helpers.random_pair import SHAPE
from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Newest, Round
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.model.cache import KVCache, Reach
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.layer_config import KINDS, LayerKind
from mlx_gemma_mtp.model.packing import Packing
from mlx_gemma_mtp.model.prompt import prompt_reach

VOCAB = 97  # a prime, so that no factor below loses information
WINDOW = 12
MAX_POSITIONS = 1024
WRONG_EVERY = 3  # drafts for positions that are multiples of this are wrong
SECONDS = 60  # after which something that should long have happened never does

PARAMS = SamplingParams(max_tokens=16, seed=11, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=900, ignore_eos=True, num_draft_tokens=0)

CONFIG = TargetConfig.from_dict(
    SHAPE
    | {"vocab_size": VOCAB, "hidden_size": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    | {"head_dim": 2, "global_head_dim": 2, "final_logit_softcapping": None}
    | {"layer_types": list(KINDS), "num_hidden_layers": 2, "sliding_window": WINDOW}
    | {"max_position_embeddings": MAX_POSITIONS}
)


def output(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The tokens that the fake target generates after this prompt, at every temperature."""
    ids = list(prompt)
    for _ in range(num_tokens):
        seen = sum(ids) + sum(ids[-WINDOW:])
        ids.append((3 * ids[-1] + len(ids) + 3 * seen) % VOCAB)
    return ids[len(prompt) :]


class FakeTarget:
    """Stands in for `Target`. Its hidden state is the next token.

    on_pass is called after each pass over prompts, with the tokens of each row. certainty: the
    distance of neighbouring logits; a small one leaves the choice to the sampler.
    """

    config = CONFIG
    dtype = mx.float32

    def __init__(
        self,
        on_pass: Callable[[list[list[int]]], object] = lambda _: None,
        certainty: float = 1000.0,
    ) -> None:
        self._on_pass = on_pass
        self._certainty = certainty

    def parameters(self) -> dict[str, Any]:
        return {}

    def modules(self) -> list[Any]:
        return []

    def set_ways(self, ways: Mapping[int, str]) -> None:
        """Without experts, they make no difference."""

    def logits(self, hidden: mx.array) -> mx.array:
        return -self._certainty * mx.abs(mx.arange(VOCAB) - hidden)

    def __call__(
        self, tokens: mx.array, cache: KVCache, packing: Packing | None = None
    ) -> mx.array:
        num_tokens = tokens.shape[1]
        if packing is not None:  # what isn't in the list must not count
            tokens = packing.unpack(packing.pack(tokens))
        hidden = self._through(tokens, cache, {k: cache.reach(k, num_tokens) for k in KINDS})
        return hidden if packing is None else packing.pack(hidden)

    def read(
        self, tokens: mx.array, cache: KVCache, start: int, lengths: Sequence[int], least: int = 1
    ) -> mx.array:
        num_tokens, rows = tokens.shape[1], zip(tokens.tolist(), lengths, strict=True)
        reaches = {k: prompt_reach(cache, k, num_tokens, start) for k in KINDS}
        hidden = self._through(tokens, cache, reaches)
        self._on_pass([row[:length] for row, length in rows])
        return mx.take_along_axis(hidden, mx.array(lengths)[:, None, None] - 1, axis=1)

    def _through(
        self, tokens: mx.array, cache: KVCache, reaches: dict[LayerKind, Reach]
    ) -> mx.array:
        length = cache.offset[:, None] + mx.arange(1, tokens.shape[1] + 1)
        result = (3 * tokens + length).astype(mx.float32)
        for index, layer in enumerate(self.config.layers):
            reach = reaches[layer.kind]
            k = mx.repeat(tokens[:, None, :, None].astype(mx.float32), 2, axis=3)
            keys, values = cache.write(index, k, 2 * k, reach)
            both = keys[..., :1] + values[..., 1:]
            sums = [
                reach.mask[..., some, seen].astype(mx.float32) @ both[:, :, seen]
                for some, seen in reach.cuts
            ]
            result = result + mx.concatenate(sums, axis=2)[:, 0, :, 0]
        return (result % VOCAB)[..., None]


class FakeDrafter:
    """Stands in for `Drafter`, which only `draft` would use."""

    config = None

    def parameters(self) -> dict[str, Any]:
        return {}

    def modules(self) -> list[Any]:
        return []


def draft(
    target: FakeTarget,
    drafter: object,
    cache: KVCache,
    newest: Newest,
    settings: object,
    num_draft_tokens: int,
) -> mx.array:
    """Stands in for `round.draft`: right, except at every third position."""
    scratch, token = KVCache(cache.config, cache.buffers), newest.token
    drafts = [mx.zeros((len(token), 0), mx.int32)]
    for _ in range(num_draft_tokens):
        token = target(token[:, None], scratch)[:, 0, 0].astype(mx.int32)
        scratch.offset = scratch.offset + 1
        wrong = (scratch.offset + 1) % WRONG_EVERY == 0
        drafts.append(mx.where(wrong, (token + 1) % VOCAB, token)[:, None])
    return mx.concatenate(drafts, axis=1)


fake_player = partial(round_player, draft=draft)


class Rounds:
    """Watches the rounds of an engine; `then` is called after each."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # rows in each round
        self.then: Callable[[], object] = lambda: None

    def hold(self, after: int) -> tuple[threading.Event, threading.Event]:
        """Hold the engine after this round: return what is set then, and what lets it continue."""
        reached, resume = threading.Event(), threading.Event()

        def then() -> None:
            if len(self.sizes) == after:
                reached.set()
                resume.wait(SECONDS)

        self.then = then
        return reached, resume

    def player(self, *models: Any) -> RoundPlayer:
        player = fake_player(*models)

        def verify(*arguments: Any) -> Round:
            played = player.verify(*arguments)
            self.sizes.append(played.accepted.shape[0])
            self.then()
            return played

        return player._replace(verify=verify)


def fake_pair(target: FakeTarget | None = None, text: object = None) -> OpenPair:
    return OpenPair(target or FakeTarget(), FakeDrafter(), text, {}, None)  # type: ignore[arg-type]


def fake_engine(target: FakeTarget | None = None, *, text: object = None, **options: Any) -> Engine:
    """An engine on the fake pair. options: as of Engine."""
    return Engine(fake_pair(target, text), **{"player": fake_player} | options)
