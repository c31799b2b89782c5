"""The shapes of a first chat, played once before it comes: MLX compiles kernels when it meets them.

A process's first rounds are slow because of that. Leaves no trace: has rows, requests and a depth
of its own, and shares only the player of the rounds. Knows nothing of real requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Chances
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.scheduler import Scheduler
from mlx_gemma_mtp.engine.worker import mlx_worker

DRAFTS = (0, 1, 2, 3)  # numbers of drafts that "auto" tries first if it knows nothing
PROMPT = [0] * 32  # about as long as a question in its template


def first_drafts(depth: Depth) -> list[int]:
    """Return the numbers of drafts that a first chat may have: what is known to be best as well."""
    (best,) = depth.choose([Chances(depth.row().reached)]).drafts
    return sorted({*DRAFTS, best})


class WarmUp:
    """One short request for each number of drafts. The worker calls everything but properties."""

    def __init__(
        self, rows: Callable[[], Batch], params: SamplingParams, drafts: Sequence[int]
    ) -> None:
        """rows: makes a batch of one row. params: resolved."""
        self._rows: Callable[[], Batch] | None = rows
        self._params = params
        self._drafts = drafts
        self._scheduler: Scheduler | None = None

    @property
    def possible(self) -> bool:
        """True until `start` or `stop` is called."""
        return self._rows is not None

    @property
    def running(self) -> bool:
        """True from `start` until all is played or `stop` is called."""
        return self._scheduler is not None

    def start(self) -> None:
        """Play in steps, with other jobs of the worker in between; once, and not after `stop`."""
        if self._rows is None:
            return
        self._scheduler = Scheduler(self._rows(), max_queue=len(self._drafts))
        self._rows = None
        for drafts in self._drafts:
            self._scheduler.reserve()
            # A token from the prompt and at least one from a round.
            request = Request(PROMPT, self._params, 2, drafts, frozenset(), None)
            self._scheduler.add(request)
        mlx_worker().repeat(self.step)

    def step(self) -> bool:
        """Play one step. Returns whether there is more to do."""
        if self._scheduler is not None and not self._scheduler.step():
            self.stop()
        return self._scheduler is not None

    def stop(self) -> None:
        """Drop the rest."""
        if self._scheduler is not None:
            self._scheduler.close()
        self._rows = self._scheduler = None
