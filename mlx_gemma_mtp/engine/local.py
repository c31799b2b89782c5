"""The requests of an engine that has its model in this process.

Has the methods of a `Remote`: what an engine needs of the place where its model is. Knows nothing
of prompts as text, nor of callers.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import TypedDict

import mlx.core as mx

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Exact
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.engine.about import About
from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.identity import model_identity
from mlx_gemma_mtp.engine.loading import Models
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.residence import After, Residence, after
from mlx_gemma_mtp.engine.rows import SIZES
from mlx_gemma_mtp.engine.scheduler import Scheduler
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.engine.status import Status
from mlx_gemma_mtp.engine.warm_up import WarmUp, first_drafts
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files.remembered import DepthKeeper, load_depth
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

Player = Callable[[Target, Drafter | None], RoundPlayer]

MAX_QUEUE = 256
DEFAULT_LIMITS = Limits()


class Options(TypedDict, total=False):
    """How an engine serves a pair.

    player: makes the two halves of the rounds of this pair. depth: replaces what earlier runs
    learned, and the table; it is not saved. after: as `Residence`. Others as `load`.
    """

    max_batch: int
    max_queue: int
    player: Player
    limits: Limits
    depth: Depth | None
    exact: Exact
    copies: bool
    context: int | None
    memory_limit: int | None
    idle_unload: float | None
    prefix_cache: int
    after: After


class Local:
    """Serves requests with a pair, on this process's worker."""

    def __init__(
        self,
        pair: OpenPair,
        *,
        max_batch: int = SIZES[-1],
        max_queue: int = MAX_QUEUE,
        player: Player = round_player,
        limits: Limits = DEFAULT_LIMITS,
        depth: Depth | None = None,
        exact: Exact = "auto",
        copies: bool = True,
        context: int | None = None,
        memory_limit: int | None = None,
        idle_unload: float | None = None,
        prefix_cache: int = 0,
        after: After = after,
    ) -> None:
        """Arguments as `Options`."""
        key = pair.fingerprint if depth is None else None
        self._depth = depth = depth or load_depth(key, exact, pair.table)

        def equip(models: Models) -> tuple[Target, RoundPlayer]:
            target = copy(models.target)  # the same weights; other engines may have other ways
            target.set_ways({} if depth.table is None else depth.table.ways)
            return target, player(target, models.drafter)

        target, rounds = equip(pair.models)
        has_drafter = pair.drafter is not None
        exactness = Exactness.of(exact, depth, limits, max_batch)
        self.copies = copies
        self.has_drafter = has_drafter
        self.budget = Budget(memory.Pair.of(target, pair.drafter), memory_limit, context)
        self.budget.check_useful()
        self.about = About(
            None if pair.text is None else pair.text.folder,
            self.budget.pair,
            pair.defaults,
            mlx_worker().run(lambda: model_identity(target)),
            exactness.max_batch,
            (*pair.notes, exactness.note) if exactness.note else pair.notes,
            pair.name,
            pair.drafter_name,
            memory_limit,
        )
        self._limits = limits
        suppressed = pair.default_tokens("suppress_tokens")
        self._keeper = keeper = None if key is None else DepthKeeper(key, depth)
        if keeper is not None:
            mlx_worker().at_exit.add(keeper.save)

        batch = partial(
            Batch, target, rounds, suppressed, has_drafter=has_drafter, budget=self.budget
        )

        likewise = Depth.from_json(depth.to_json(), exact)
        one_row = partial(batch, likewise, exactness._replace(max_batch=1), copies=False)
        params = SamplingParams(seed=0).resolved(pair.defaults)
        drafts = first_drafts(likewise) if has_drafter else (0,)
        self._warm_up = warm_up = WarmUp(one_row, params, drafts)
        reload = pair.files.load if pair.files and idle_unload else None

        def start() -> tuple[Residence, Scheduler]:
            turn = None if pair.text is None else pair.text.markers.turn
            rows = batch(depth, exactness, copies=copies, prefix_cache=prefix_cache, turn=turn)
            residence = Residence(
                rows, equip, reload, idle_unload, on_unload=warm_up.stop, after=after
            )

            def on_idle() -> None:
                if keeper is not None:
                    keeper.idle()
                residence.rest()

            residence.rest()
            return residence, Scheduler(rows, max_queue=max_queue, on_idle=on_idle)

        self._residence, self._scheduler = mlx_worker().run(start)

    @property
    def status(self) -> Status:
        """As `Scheduler.status`."""
        return self._scheduler.status

    @property
    def loaded(self) -> bool:
        """True while the weights are in memory."""
        return self._residence.loaded

    @property
    def warming(self) -> bool:
        """True while `warm_up` is at work."""
        return self._warm_up.running

    @property
    def available(self) -> int:
        """Bytes that MLX may hold here."""
        return device.available()

    @property
    def plain_tokens_per_second(self) -> float | None:
        """As `Engine.plain_tokens_per_second`."""
        return self._depth.plain_tokens_per_second

    def warm_up(self, *, on_cpu: bool) -> None:
        """As `Engine.warm_up`, from any other thread."""
        if self._warm_up.possible and (on_cpu or device.backend() != "cpu"):
            mlx_worker().run(self._warm_up.start)

    def session(self, owner: object) -> Session:
        """Return a new session."""
        return Session(self.about.pair.target, self.about.identity, self._limits, owner)

    def reserve(self, *, patient: bool = False) -> None:
        """Take a place in the queue for a request; from any thread. As `Line.reserve`."""
        self._scheduler.reserve(patient=patient)

    def add(self, request: Request) -> None:
        """Serve a request that has a place. The worker calls this."""
        self._warm_up.stop()
        self._scheduler.add(request)
        if not request.ended:  # it ends at once after `close`
            self._residence.work(self._scheduler)

    def close(self) -> None:
        """End everything with an MgmError, also what is added later, and free the memory.

        Waits for it, from any other thread.
        """
        mlx_worker().run(self._close)

    def _close(self) -> None:
        self._warm_up.stop()
        self._scheduler.close()
        self._residence.close()
        if self._keeper is not None:
            mlx_worker().at_exit.discard(self._keeper.save)
            self._keeper.save()
        mx.clear_cache()
