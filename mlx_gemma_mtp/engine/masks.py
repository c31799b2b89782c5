"""Which tokens the next ones of rows may be, by the constraints of their requests.

Asks the constraints on the host and lays their masks out for the device. Knows nothing of how
drafts are made, or of what a round costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_gemma_mtp.decode.constraint import Mask
from mlx_gemma_mtp.decode.params import MAX_BIAS
from mlx_gemma_mtp.decode.round import Allowed
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.grammar import mask_of, num_words, without

NOTHING_LEFT = (
    "no token is left to choose: the output may only continue with tokens that logit_bias or the "
    "checkpoint's suppress_tokens bar. Allow one of them"
)


class Masks:
    """Asks for the masks of requests to one target."""

    def __init__(self, vocab_size: int, suppressed: Sequence[int]) -> None:
        self._num_words = num_words(vocab_size)
        self._open = without(mask_of(range(vocab_size), vocab_size), suppressed)

    def first(self, requests: Sequence[Request | None]) -> mx.array:
        """Return the masks uint32 [B, 1, W] of each row's next token; None: it may be any."""
        return self._laid_out([self._of(one) if one else [] for one in requests], 1)

    def allowed(
        self, requests: Sequence[Request | None], drafts: mx.array, most: Sequence[int]
    ) -> Allowed:
        """Return what is left of drafts [B, T - 1], of which each row verifies `most`.

        Waits for the drafts. None for a row that may take any.
        """
        texts, left, each = cast(list[list[int]], drafts.tolist()), [*most], list[list[Mask]]()
        for row, request in enumerate(requests):
            masks = self._of(request, texts[row][: most[row]]) if request else []
            if request:
                left[row] = min(most[row], len(masks) - 1)
            each.append(masks)
        return Allowed(self._laid_out(each, drafts.shape[1] + 1), mx.array(left, mx.int32))

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

    def _laid_out(self, each: Sequence[Sequence[Mask]], num_positions: int) -> mx.array:
        """Return masks of the first positions of each row as uint32 [B, T, W]; others allow all."""
        masks = np.full((len(each), num_positions, self._num_words), 2**32 - 1, np.uint32)
        for row, own in zip(masks, each, strict=True):
            for at, mask in zip(row, own, strict=False):
                at[:] = mask
        return mx.array(masks)
