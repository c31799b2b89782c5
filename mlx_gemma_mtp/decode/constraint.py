"""What the next tokens of a row may be, given its output so far.

A protocol: who knows text implements it. Lives on the host; knows nothing of the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# uint32 [ceil(vocab_size / 32)]: token v is allowed if bit v % 32 of word v // 32 is set.
Mask = NDArray[np.uint32]


class Constraint(Protocol):
    """The rule for one output. Its state is the tokens it has accepted."""

    def masks(self, tokens: Sequence[int]) -> list[Mask | None]:
        """Return which tokens are allowed next, then after each of `tokens`, drafts of the output.

        Ends early if one of them is not allowed, or ends the output. None allows all tokens. Leaves
        the state as it is.
        """

    def is_free(self, count: int) -> bool:
        """True if each of the next `count` tokens may be any, whatever those before it are."""

    def forced(self, count: int) -> list[int]:
        """Return the next tokens, up to `count`, while each is the only one that is allowed.

        May return fewer than there are.
        """

    def accept(self, tokens: Sequence[int]) -> None:
        """Add the next tokens of the output, each of which was allowed."""
