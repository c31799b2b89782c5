"""Passes over prompts: what a query sees, and that rows read together are as if read alone."""

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.fake_target import CONFIG
from helpers.random_pair import random_pair
from mlx_gemma_mtp.decode.round import prefill
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files.weights import load_target
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.layer_config import KINDS
from mlx_gemma_mtp.model.prompt import prompt_reach
from mlx_gemma_mtp.model.target import Target


def empty(config: TargetConfig, lengths: list[int]) -> KVCache:
    """A cache as small as possible for prompts of these lengths."""
    longest, window = max(lengths), config.sliding_window
    held = longest if len(lengths) > 1 else min(longest, window)
    shape = {"capacity": capacity_for(longest, 1), "most": held - window, "slot_step": 1}
    return KVCache.empty(config, len(lengths), dtype=mx.float32, **shape)


@pytest.mark.parametrize("cut", [8, 24, 1000])
@pytest.mark.parametrize("length", [5, 12, 13, 70])
def test_a_query_of_a_prompt_sees_its_window_whatever_was_read_before(
    rng: np.random.Generator, cut: int, length: int
) -> None:
    cache = empty(CONFIG, [length])
    start = 0
    while start < length:
        size = min(int(rng.integers(1, 40)), length - start)
        positions = mx.arange(start, start + size, dtype=mx.float32)
        new = mx.broadcast_to(positions[:, None] + 1, (1, 1, size, 2))
        for index, kind in enumerate(KINDS):
            reach = prompt_reach(cache, kind, size, start, cut)
            keys, values = (np.array(seen) for seen in cache.write(index, new, 2 * new, reach))
            assert (values == 2 * keys).all()
            queries = list(range(size))
            for some, seen in reach.cuts:
                mask = np.array(reach.mask)[0, 0, some, seen]
                for query, row in zip(queries[some], mask, strict=True):
                    last = start + query
                    first = max(0, last + 1 - CONFIG.sliding_window)
                    found = keys[0, 0, seen, 0][row] - 1
                    expected = range(first if kind == "sliding_attention" else 0, last + 1)
                    assert sorted(found) == list(expected)
            covered = [query for some, _ in reach.cuts for query in queries[some]]
            assert covered == queries
        start += size


def held(cache: KVCache, row: int, length: int) -> list[np.ndarray]:
    """What a cache of one row gets of this row."""
    mine = empty(cache.config, [length])
    mine.copy_row(cache, row, length)
    return [np.array(buffer) for buffer in (*mine.keys, *mine.values)]


def read_alone(
    target: Target, rng: np.random.Generator, ids: list[int]
) -> tuple[KVCache, mx.array]:
    """A prompt's cache and last state, read in chunks of random sizes."""
    cache, start = empty(target.config, [len(ids)]), 0
    while start < len(ids):
        chunk = ids[start : start + int(rng.integers(1, 50))]
        hidden = prefill(target, cache, mx.array([chunk]), start, [len(chunk)])
        mx.eval(hidden, cache.buffers)
        start += len(chunk)
    return cache, hidden


def test_prompts_read_together_are_as_if_read_alone(
    pair: PairPaths, rng: np.random.Generator
) -> None:
    target = load_target(pair.target, dtype=mx.float32)
    window = target.config.sliding_window
    for lengths in ([3, 2 * window + 1], [1, window, window + 1, 3 * window, 7, window - 1, 20, 2]):
        prompts = [rng.integers(0, VOCAB, length).tolist() for length in lengths]
        padding = [rng.integers(0, VOCAB, max(lengths) - length).tolist() for length in lengths]
        tokens = [prompt + more for prompt, more in zip(prompts, padding, strict=True)]
        together = empty(target.config, lengths)
        hidden = prefill(target, together, mx.array(tokens), 0, lengths)
        assert together.offset.tolist() == lengths
        for row, prompt in enumerate(prompts):
            cache, state = read_alone(target, rng, prompt)
            np.testing.assert_allclose(hidden[row], state[0], atol=2e-4)
            pairs = zip(held(together, row, len(prompt)), held(cache, 0, len(prompt)), strict=True)
            for ours, alone in pairs:
                np.testing.assert_allclose(ours, alone, atol=2e-4)


def test_a_pass_frees_the_keys_and_values_of_each_layer_as_it_goes(
    rng: np.random.Generator,
) -> None:
    def peak(num_layers: int) -> int:
        kinds = ["sliding_attention"] * (num_layers - 1) + ["full_attention"]
        shape = {"num_hidden_layers": num_layers, "layer_types": kinds, "sliding_window": 16}
        target = random_pair(rng, experts=shape).target
        return mlx_worker().run(lambda: peak_of(target))

    def peak_of(target: Target) -> int:
        cache, tokens = empty(target.config, [600]), mx.zeros((1, 600), mx.int32)
        mx.eval(target.parameters(), cache.buffers, tokens)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(prefill(target, cache, tokens, 0, [600]), cache.buffers)
        return mx.get_peak_memory() - before

    assert peak(16) < 1.1 * peak(4)
