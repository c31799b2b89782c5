"""Gemma 4 pairs of real sizes with random weights, and accepts drawn at stated rates.

They show what rounds cost when the real weights are not here. A random drafter is never right, so
the number of accepted drafts is drawn. Knows nothing of prompts or of time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from mlx_gemma_mtp.command_buffers import Shape, choose_limits
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Round, agreeing_prefix
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files import published
from mlx_gemma_mtp.files.weights import quantize
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layers import fuse_projections
from mlx_gemma_mtp.model.target import Target

Model = TypeVar("Model", Target, Drafter)

SIZES = tuple(size.kind for size in published.SIZES)
# The square roots of primes are irrational and unrelated: an independent sequence for each row.
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def settings(size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The target's and the drafter's config.json, as far as shapes go. Raises UsageError.

    size: a published one, such as "26B-A4B" or "26b", or a JSON file like those in `sizes`.
    """
    named = published.size_of(size)
    file = Path(__file__).with_name("sizes") / f"{named.kind}.json" if named else Path(size)
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
        return found["target"], found["drafter"]
    except OSError:
        sizes = ", ".join(SIZES)
        raise UsageError(f"--synthetic must be one of {sizes}, or a file, not {size!r}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{size} does not describe a target and a drafter") from None


def random_pair(
    size: str, dtype: mx.Dtype = mx.bfloat16, bits: int | None = None
) -> tuple[Target, Drafter]:
    """A target and its drafter; each weight has a standard deviation of width ** -0.5.

    bits: 4 or 8 quantizes them as `load` does. Nothing is computed yet: the models have their
    sizes, but take no memory until `draw`.
    """
    target, drafter = settings(size)
    config = TargetConfig.from_dict(target)
    choose_limits(Shape.of(config))
    return (
        _noise(Target(config), dtype, bits),
        _noise(Drafter(DrafterConfig.from_dict(drafter)), dtype, bits),
    )


def draw(model: Model) -> Model:
    """Compute the weights one at a time, so that memory holds them once.

    To be called on the worker. Stops early if the process is ending.
    """
    fuse_projections(model)
    for parameter in dict(tree_flatten(model.parameters())).values():
        if mlx_worker().leaving.is_set():
            break
        mx.eval(parameter)
    return model


def _noise(model: Model, dtype: mx.Dtype, bits: int | None) -> Model:
    def noise(parameter: mx.array) -> mx.array:
        if parameter.dtype == mx.int32:  # a centroid head's token ordering
            return mx.random.permutation(parameter.size).astype(mx.int32)
        if parameter.ndim == 1:  # norms and scales
            return mx.ones(parameter.shape, dtype)
        return mx.random.normal(parameter.shape, dtype) * parameter.shape[-1] ** -0.5

    model.update(tree_map(noise, model.parameters()))
    if bits is not None:
        quantize(model, bits)
    return model


def expected_tokens(accept: Sequence[float], num_draft_tokens: int) -> float:
    """Tokens per round and row on average, the extra one included.

    accept: the chance of each draft if those before it are accepted; the last one repeats.
    """
    return 1 + sum(_reached(accept, count) for count in range(1, num_draft_tokens + 1))


def _reached(accept: Sequence[float], count: int) -> float:
    """The chance that the first `count` drafts are all accepted."""
    return math.prod(accept[min(i, len(accept) - 1)] for i in range(count))


class Draws:
    """How many drafts each row accepts, round by round.

    Quasi-random (an additive recurrence, Niederreiter 1992), so that a few rounds already come
    near the rates. accept: chances as in `expected_tokens`; rows 0, 1, … take these lists in turn.
    """

    def __init__(self, accept: Sequence[Sequence[float]]) -> None:
        self.accept = accept
        self._round = 0

    def __call__(self, num_rows: int, num_draft_tokens: int) -> list[int]:
        """The accepted drafts of each row in the next round."""
        self._round += 1
        counts, drawn = range(1, num_draft_tokens + 1), []
        for row, prime in enumerate(PRIMES[:num_rows]):
            accept = self.accept[row % len(self.accept)]
            point = math.modf(self._round * math.sqrt(prime))[0]
            drawn.append(sum(point < _reached(accept, count) for count in counts))
        return drawn

    def player(self, target: Target, drafter: Drafter | None) -> RoundPlayer:
        """Rounds in which all drafts agree, up to the number drawn for each row.

        A row is known by its seed, 0 to 7: requests join a batch in any order.
        """
        player = round_player(target, drafter, agree=all_agree)

        def verify(cache: KVCache, *rest: Any) -> Round:
            newest, settings, layout, drafts = rest
            # Through an argument: a compiled round would repeat the first numbers drawn.
            drawn = mx.array(self(len(PRIMES), drafts.shape[1]), mx.int32)[settings.seed[:, 0]]
            layout = layout._replace(max_accepted=mx.minimum(layout.max_accepted, drawn))
            return player.verify(cache, newest, settings, layout, drafts)

        return player._replace(verify=verify)


def all_agree(drafts: mx.array, chosen: mx.array) -> mx.array:
    """Every draft counts as right. Computes the comparison, as a real round does."""
    return mx.maximum(agreeing_prefix(drafts, chosen), drafts.shape[1])
