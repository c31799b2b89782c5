"""Which tokens the next ones of rows may be, by the constraints of their requests.

Asks the constraints on the host and lays their masks out for the device. Knows nothing of how
drafts are made, or of what a round costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.decode.constraint import Mask
from mlx_gemma_mtp.decode.params import MAX_BIAS
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.rows import SIZES
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.grammar import mask_of, num_words, without

NOTHING_LEFT = (
    "no token is left to choose: the output may only continue with tokens that logit_bias or the "
    "checkpoint's suppress_tokens bar. Allow one of them"
)


Asked = tuple[Request, Sequence[int]]  # with the drafts


class Masks:
    """Asks for the masks of requests to one target, of several at once: they take a core each."""

    def __init__(self, vocab_size: int, suppressed: Sequence[int]) -> None:
        self._num_words = num_words(vocab_size)
        self._open = without(mask_of(range(vocab_size), vocab_size), suppressed)

    def of(self, asked: Sequence[Asked | None]) -> list[list[Mask]]:
        """Return what the next token may be, and what may follow each draft that is allowed.

        For each request with its drafts; None gives nothing. If nothing may come next, or the
        constraint raises, the request fails, and has none.
        """
        there = [one for one in asked if one is not None]
        several = sum(request.constraint is not None for request, _ in there) > 1
        found = iter([*(_threads().map if several else map)(self._of, there)])
        masks = list[list[Mask]]()
        for one in asked:
            own = None if one is None else next(found)
            if one is not None and isinstance(own, BaseException):
                one[0].fail(own)
            masks.append(own if isinstance(own, list) else [])
        return masks

    def _of(self, asked: Asked) -> list[Mask] | BaseException:
        """Return the masks of a request, or what its constraint raised."""
        request, drafts = asked
        bias, constraint = request.params.logit_bias, request.constraint
        barred = [token for token, value in bias.items() if value == -MAX_BIAS]
        may = without(self._open, barred)
        kept = list[Mask]()
        try:
            for mask in [None] if constraint is None else constraint.masks(drafts):
                kept.append(may if mask is None else mask & may)
                if not kept[-1].any():
                    kept.pop()
                    break
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            return error
        return kept or UsageError(NOTHING_LEFT)

    def laid_out(self, each: Sequence[Sequence[Mask]], num_positions: int) -> mx.array:
        """Return masks of the first positions of each row as uint32 [B, T, W]; others allow all."""
        masks = np.full((len(each), num_positions, self._num_words), 2**32 - 1, np.uint32)
        for row, own in zip(masks, each, strict=True):
            for at, mask in zip(row, own, strict=False):
                at[:] = mask
        return mx.array(masks)


@cache
def _threads() -> ThreadPoolExecutor:
    """The threads for masks: a grammar lets go of Python's lock while it computes one."""
    return ThreadPoolExecutor(SIZES[-1], thread_name_prefix="mgm-masks")
