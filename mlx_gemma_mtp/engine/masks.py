"""Which tokens the next ones of rows may be, by the constraints of their requests.

Asks the constraints on the host and lays their masks out for the device. Knows nothing of how
drafts are made, or of what a round costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_gemma_mtp.decode.constraint import Mask
from mlx_gemma_mtp.decode.params import MAX_BIAS
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.grammar import mask_of, num_words, without

NOTHING_LEFT = (
    "no token is left to choose: the output may only continue with tokens that logit_bias or the "
    "checkpoint's suppress_tokens bar. Allow one of them"
)


class Blank(NamedTuple):
    """An array that work for the device is laid out with before its content is known.

    content shares its memory, as MLX documents for NumPy. It must be written before anything that
    reads the array is dispatched.
    """

    array: mx.array
    content: NDArray[Any]

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: type[np.int32 | np.uint32]) -> Blank:
        """Return a blank of zeros."""
        array = mx.array(np.zeros(shape, dtype))
        return cls(array, np.array(array, copy=False))


class Masks:
    """Asks for the masks of requests to one target."""

    def __init__(self, vocab_size: int, suppressed: Sequence[int]) -> None:
        self._num_words = num_words(vocab_size)
        self._open = without(mask_of(range(vocab_size), vocab_size), suppressed)

    def blank(self, batch: int, num_positions: int) -> Blank:
        """Return a blank for masks uint32 [B, T, W]."""
        return Blank.of((batch, num_positions, self._num_words), np.uint32)

    def write(
        self,
        blank: Blank,
        requests: Sequence[Request | None],
        drafts: Sequence[Sequence[int]] | None = None,
    ) -> list[int]:
        """Write what the next token of each row may be, and what may follow each of its drafts.

        Returns how many drafts of each are allowed, -1 if its request failed. None for a row that
        may take any; all of its drafts are allowed.
        """
        allowed = []
        blank.content[:] = 2**32 - 1
        for row, request in enumerate(requests):
            texts = [] if drafts is None else drafts[row]
            masks = self._of(request, texts) if request else []
            for at, mask in enumerate(masks):
                blank.content[row, at] = mask
            allowed.append(len(masks) - 1 if request else len(texts))
        return allowed

    def _of(self, request: Request, drafts: Sequence[int] = ()) -> list[Mask]:
        """Return what the next token may be, and what may follow each draft that is allowed.

        If nothing may come next, or the constraint raises, the request fails: then it is empty.
        """
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
            if not kept:
                raise UsageError(NOTHING_LEFT)
        except BaseException as error:  # noqa: BLE001 - the submitter gets it
            request.fail(error)
            return []
        return kept
