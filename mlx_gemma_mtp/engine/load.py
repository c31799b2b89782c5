"""Loading a pair, from its names to its engine."""

from __future__ import annotations

import threading
from pathlib import Path

from mlx_gemma_mtp import device
from mlx_gemma_mtp.decode.division import Exact
from mlx_gemma_mtp.decode.params import is_count, is_duration
from mlx_gemma_mtp.engine.budget import room_for
from mlx_gemma_mtp.engine.callbacks import in_a_loop
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.loading import Watch
from mlx_gemma_mtp.engine.local import MAX_QUEUE
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.probe import measure
from mlx_gemma_mtp.engine.remote_engine import load_remote
from mlx_gemma_mtp.engine.rows import SIZES
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import LoadCancelledError, UsageError, one_line
from mlx_gemma_mtp.files.remembered import load_table, save_table
from mlx_gemma_mtp.memory import Pair


def load(
    model: str | Path,
    drafter: str | Path | None = "auto",
    *,
    bits: int | None = None,
    max_batch: int = SIZES[-1],
    max_queue: int = MAX_QUEUE,
    force: bool = False,
    warm_up: bool = True,
    exact: Exact = "auto",
    copies: bool = True,
    probe: bool | Watch = True,
    on_progress: Watch | None = None,
    cancel: threading.Event | None = None,
    context: int | None = None,
    memory_limit: int | None = None,
    keep_resident: bool = False,
    idle_unload: float | None = None,
    isolated: bool = False,
    prefix_cache: int | None = None,
) -> Engine:
    """Load a target and its drafter.

    model: a folder, a Hub name, a size such as "e4b" (`files.choice.choose` says which checkpoint
    that is here), or "demo", the embedded pair. drafter: a folder or a Hub name; "auto" for the
    best on this disk that fits the target, None for no drafter. bits: 4 or 8 quantizes both while
    loading. If the target is quantized already, the drafter is quantized in the same way.
    max_batch: the most requests that decode together, up to 8. max_queue: the most that wait.
    force: load even if it may not fit in memory. warm_up: compile in the background what a first
    chat needs, see `Engine.warm_up`.

    exact: give a token the same bits whatever is drafted and whoever else decodes, in the models'
    own precision. "auto" does it where it costs little; True always, without drafts if no passes
    with drafts agree on this machine, and Engine.notes says so; False takes the quickest passes.
    `Completion.exact` says which it was. copies: draft from the prompt and the output so far where
    they repeat themselves; this changes no output.

    probe: measure the model on this machine before its first use, for at most 10 seconds: see
    `with_table`. False leaves it out; a function is called with the share of the time that is over.

    on_progress: called in this thread with the share of the weights that is loaded, 0 to 1. cancel:
    set it, from any thread, to end the load within a moment with LoadCancelledError; so does
    Ctrl-C. A download that has started ends first. Engines that are at work are not stopped by a
    load: it takes about 50 ms between two of their rounds.

    context: the most tokens of a prompt and its answer, if fewer than the model's maximum.
    memory_limit: the most bytes for the weights and the requests, instead of all that the machine
    has once the model is loaded: a pair is refused if it needs more, and so is a prompt, before it
    is prefilled; outputs are shorter, and fewer requests decode together. What sessions keep
    between turns comes on top. With force, requests have no limit unless this is set.

    keep_resident: ask macOS to keep in memory what MLX holds in this process. Otherwise an idle
    model may be compressed or swapped out if other apps need the memory, and its next request
    waits for it. idle_unload: seconds without a request after which the weights leave the memory;
    the next request loads them again, and counts that as `queue_seconds`. Sessions stay as they
    are.

    isolated: keep the model in a worker process, so that a crash or a lack of memory there leaves
    this one alone: what was under way raises WorkerDiedError, and the next request starts another
    worker, waiting while it loads; sessions start from scratch. It ends with this process, and is
    this Python without the program's own file. In a frozen app, call `freeze_support` of
    `multiprocessing` first. What the worker prints goes to stderr.

    prefix_cache: bytes in which to keep the keys and values of prompts and answers, so that what
    later prompts start with is not prefilled again: the instructions that conversations share, and
    the earlier turns of each. None or 0 keeps nothing. The prefixes that were not used for longest
    go first, and all of them at an `idle_unload`. They are part of `memory_limit`, and give way to
    requests. Outputs stay the same. Requests that come together prefill what they share once.

    On an M1 to M4, the first model of a process also sets how much work MLX puts into a command
    buffer of the GPU (`command_buffers`), unless MLX_MAX_OPS_PER_BUFFER or MLX_MAX_MB_PER_BUFFER is
    set. If MLX was in use before, its own limits stay.

    What is not on this disk is downloaded, after its config and headers have shown that it can be
    loaded here; a target with its drafter. Raises ModelNotFoundError, CheckpointError, UsageError,
    NotEnoughMemoryError, LoadCancelledError.
    """
    if not is_count(max_batch) or not 1 <= max_batch <= SIZES[-1]:
        raise UsageError(f"max_batch must be between 1 and {SIZES[-1]}, not {max_batch!r}")
    if not is_count(max_queue) or max_queue < 1:
        raise UsageError(f"max_queue must be at least 1, not {max_queue!r}")
    if exact != "auto" and not isinstance(exact, bool):
        raise UsageError(f'exact must be "auto", True or False, not {exact!r}')
    switches = {
        "force": force,
        "warm_up": warm_up,
        "copies": copies,
        "keep_resident": keep_resident,
        "isolated": isolated,
    }
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise UsageError(f"{name} must be True or False, not {switch!r}")
    if not isinstance(probe, bool) and not _is_function(probe):
        raise UsageError(f"probe must be True, False or a function, not {probe!r}")
    if on_progress is not None and not _is_function(on_progress):
        raise UsageError(f"on_progress must be a function that is not async, not {on_progress!r}")
    if cancel is not None and not isinstance(cancel, threading.Event):
        raise UsageError(f"cancel must be a threading.Event, not {cancel!r}")
    if context is not None and (not is_count(context) or context < 2):
        raise UsageError(f"context must be at least 2 tokens, not {context!r}")
    if memory_limit is not None and (not is_count(memory_limit) or memory_limit < 1):
        raise UsageError(f"memory_limit must be a number of bytes, not {memory_limit!r}")
    if prefix_cache is not None and (not is_count(prefix_cache) or prefix_cache < 0):
        raise UsageError(f"prefix_cache must be a number of bytes, not {prefix_cache!r}")
    fits = is_duration(idle_unload) and idle_unload <= threading.TIMEOUT_MAX
    if idle_unload is not None and not fits:
        raise UsageError(f"idle_unload must be more than 0 seconds, not {idle_unload!r}")

    if isolated:
        watches = {"load": on_progress, "probe": None if isinstance(probe, bool) else probe}
        return load_remote(
            {
                "model": model,
                "drafter": drafter,
                "bits": bits,
                "max_batch": int(max_batch),
                "force": force,
                "warm_up": warm_up,
                "exact": exact,
                "copies": copies,
                "probe": probe is not False,
                "context": None if context is None else int(context),
                "memory_limit": None if memory_limit is None else int(memory_limit),
                "keep_resident": keep_resident,
                "idle_unload": idle_unload,
                "prefix_cache": int(prefix_cache or 0),
            },
            max_queue=int(max_queue),
            watches={part: watch for part, watch in watches.items() if watch is not None},
            cancel=None if cancel is None else cancel.is_set,
        )

    def watched(watch: Watch | None) -> Watch:
        def see(share: float) -> None:
            if cancel is not None and cancel.is_set():
                raise LoadCancelledError(f"loading {model} was cancelled")
            if watch is not None:
                watch(share)

        return see

    pair = open_pair(
        model,
        drafter,
        bits=bits,
        force=force,
        memory_limit=memory_limit,
        watch=watched(on_progress),
    )
    try:
        if probe is not False:
            pair = with_table(pair, exact, watched(None if probe is True else probe))
        if memory_limit is None and not force:
            memory_limit = room_for(Pair.of(pair.target, pair.drafter))
        engine = Engine(
            pair,
            max_batch=int(max_batch),
            max_queue=int(max_queue),
            exact=exact,
            copies=copies,
            context=context,
            memory_limit=memory_limit,
            idle_unload=idle_unload,
            prefix_cache=int(prefix_cache or 0),
        )
    except BaseException:
        pair.models.discard()
        raise
    if keep_resident:
        mlx_worker().run(device.keep_resident)
    if warm_up:
        engine.warm_up()
    return engine


def _is_function(value: object) -> bool:
    return callable(value) and not in_a_loop(value)


def with_table(pair: OpenPair, exact: Exact = "auto", watch: Watch | None = None) -> OpenPair:
    """Return the pair with the table of its passes: the kept one, or else a new one, which is kept.

    Nothing is measured on a CPU unless exact is True: a pass takes there nearly as long as it has
    tokens. If measuring fails, the pair has no table, and a note says why. A kept table without
    passes that agree may come from a busy machine: exact=True measures again. watch: see `load`.
    """
    key = pair.fingerprint
    table = None if key is None else load_table(key)
    if exact is True and table is not None and not table.classes:
        table = None
    if table is None and (device.backend() != "cpu" or exact is True):
        try:
            table = measure(pair.target, pair.drafter, watch)
        except (RuntimeError, MemoryError) as error:  # MLX raises these if memory is short
            note = f"this machine could not be measured, so drafts start slowly: {one_line(error)}"
            return pair._replace(notes=(*pair.notes, note))
        if table is not None and key is not None:
            save_table(key, table)
    return pair._replace(table=table)
