"""The engine: prompts in, texts out.

Checks prompts and settings in the caller's thread; the work is the scheduler's, on the one thread
that uses MLX.
"""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_gemma_mtp import device, memory
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.params import SamplingParams, is_count
from mlx_gemma_mtp.decode.round import PlayRound, round_player
from mlx_gemma_mtp.engine.batch import SIZES
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Chunk, Completion, Generation
from mlx_gemma_mtp.engine.scheduler import Scheduler
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.remembered import load_depth, save_depth
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.text.messages import Message, Prompt

Player = Callable[[Target, Drafter | None], PlayRound]

DEFAULT_LIMITS = Limits()
GEMMA_EOS = 1  # for a checkpoint without a generation_config
PROMPT_FORMS = 'a prompt is text, a list of token ids, or a list of {"role", "content"} messages'


class Engine:
    """A loaded pair. Made by `load`; a context manager; may be used from any thread."""

    def __init__(
        self,
        pair: OpenPair,
        *,
        max_batch: int = SIZES[-1],
        max_queue: int = 256,
        player: Player = round_player,
        limits: Limits = DEFAULT_LIMITS,
        depth: Depth | None = None,
    ) -> None:
        """player: makes the function that plays a round of this pair.

        depth: used instead of what earlier runs learned, and not saved.
        """
        target, drafter, self.text, defaults, fingerprint = pair
        remember = fingerprint if depth is None else None
        depth = depth or (Depth() if remember is None else load_depth(remember))
        self.config = target.config
        self.has_drafter = drafter is not None
        self._pair = memory.Pair.of(target, drafter)
        self._identity = mlx_worker().run(lambda: _identity(target))
        self._defaults = defaults
        self._max_batch = max_batch
        self._limits = limits
        self._eos = frozenset(_token_list(defaults, "eos_token_id", self.config) or [GEMMA_EOS])
        self._depth = depth
        self._scheduler: Scheduler | None = Scheduler(
            target,
            player(target, drafter),
            depth,
            suppressed=_token_list(defaults, "suppress_tokens", self.config),
            max_batch=max_batch,
            max_queue=max_queue,
            limits=limits,
            on_idle=None if remember is None else partial(save_depth, remember, depth),
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way within a round and give the memory back.

        Whoever still waits for a text gets an MgmError. The engine cannot be used afterwards;
        closing twice is fine. Raises UsageError in an `on_chunk` callback.
        """
        mlx_worker().check_may_wait()
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.close()
            del scheduler  # and with it the models
            mlx_worker().run(mx.clear_cache)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
        *,
        session: Session | None = None,
    ) -> Generation:
        """Ask for the text of one prompt without waiting for it.

        Requests are served in order; up to max_batch decode side by side, joining and leaving at
        any round. on_chunk is called with every piece of the text, on the thread that does all the
        work: it must be quick and must not wait for an engine. What it raises ends the request.
        What fails is told by the Generation alone. session: the conversation that this is a turn
        of; what it holds of the prompt is not prefilled again.

        Raises QueueFullError where max_queue requests wait already, else as `generate`.
        """
        return self._submit(self._request(prompt, params, on_chunk, session))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """The texts of several prompts, up to max_batch of them decoding side by side.

        A prompt is a string (one user turn), a list of token ids, or a list of messages
        {"role", "content"}; a single one may be given as it is. `params` are those of all
        prompts, or one for each. The results are in the order of the prompts, of which there may
        be any number. The first that fails ends the others.

        Raises UsageError for a prompt or setting that cannot be honoured, before any work;
        NotEnoughMemoryError and GenerationError for what fails later.
        """
        mlx_worker().check_may_wait()
        many = _prompts(prompts)
        each = list(params) if isinstance(params, Sequence) else [params] * len(many)
        if len(each) != len(many):
            raise UsageError(f"{len(many)} prompts but {len(each)} settings: give one for each")
        requests = [self._request(one, own) for one, own in zip(many, each, strict=True)]
        pending: set[Future[Completion]] = set()
        try:
            for request in requests:
                # Enough to keep every row busy; the rest of the queue is for others.
                if len(pending) == 2 * self._max_batch:
                    pending = _wait(pending, FIRST_COMPLETED)
                pending.add(self._open.submit(request, patient=True))
            _wait(pending, FIRST_EXCEPTION)
            return [request.generation.result() for request in requests]
        except BaseException:
            for request in requests:
                request.generation.cancel()
            raise

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        session: Session | None = None,
    ) -> Iterator[Chunk]:
        """The text of one prompt, piece by piece as it becomes certain.

        Work begins when the first piece is asked for; closing the iterator stops it within one
        round. Errors as `submit`.
        """
        chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        return self._pieces(self._request(prompt, params, chunks.put, session), chunks)

    def session(self, saved: Path | None = None) -> Session:
        """A conversation whose turns are not prefilled twice; give it to `submit` and `stream`.

        The text is the same without. saved: a file that `Session.save` wrote with this model.
        Raises CheckpointError where it is none.
        """
        _ = self._open
        session = Session(self.config, self._identity, self._limits)
        if saved is not None:
            mlx_worker().run(partial(session.restore, saved))
        return session

    def plain_tokens_per_second(self) -> float | None:
        """What one text alone gets here without drafts; None as long as that was not measured."""
        return mlx_worker().run(lambda: self._depth.plain_tokens_per_second)

    def longest_context(self) -> int:
        """Most tokens of one kept text that there is room for; 0 where that is none."""
        return mlx_worker().run(
            lambda: self._pair.longest_context(batch=1, have=device.available(), sessions=1)
        )

    def _submit(self, request: Request) -> Generation:
        session = request.session
        if session is None:
            return self._open.submit(request)
        session.begin()
        try:
            generation = self._open.submit(request)
        except MgmError:
            session.end()
            raise
        generation.add_done_callback(lambda _: session.end())
        return generation

    def _pieces(self, request: Request, chunks: queue.SimpleQueue[Chunk | None]) -> Iterator[Chunk]:
        mlx_worker().check_may_wait()
        request.generation.add_done_callback(lambda _: chunks.put(None))
        try:
            self._submit(request)
            while (chunk := chunks.get()) is not None:
                yield chunk
            request.generation.result()  # raises what ended it early
        finally:
            request.generation.cancel()

    @property
    def _open(self) -> Scheduler:
        if self._scheduler is None:
            raise MgmError("this engine is closed: load the model again")
        return self._scheduler

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        on_chunk: Callable[[Chunk], None] | None = None,
        session: Session | None = None,
    ) -> Request:
        """Check a prompt and its settings, and lay them out as a request."""
        _ = self._open  # a closed engine says so here
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise UsageError(f"settings come as SamplingParams, not {type(params).__name__}")
        ids = self._ids(prompt, thinking=params.thinking)
        room = self.config.max_position_embeddings - len(ids)
        if not ids:
            raise UsageError("the prompt is empty: give some text")
        bad = next((i for i in ids if not 0 <= i < self.config.vocab_size), None)
        if bad is not None:
            raise UsageError(
                f"token id {bad} is outside the vocabulary of {self.config.vocab_size} tokens"
            )
        if room < 1:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, but the model takes at most "
                f"{self.config.max_position_embeddings}, its answer included: shorten it"
            )
        if params.stop_strings and self.text is None:
            raise UsageError("stop strings need a tokenizer, and this checkpoint has none")
        asked = params.num_draft_tokens
        drafts = asked if isinstance(asked, int) else None if self.has_drafter else 0
        if drafts and not self.has_drafter:
            raise ModelNotFoundError(
                f"{drafts} draft tokens need a drafter, and none was loaded: "
                "name one, or ask for 0 draft tokens"
            )
        return Request(
            ids,
            params.resolved(self._defaults),
            max_tokens=min(params.max_tokens or room, room),
            num_draft_tokens=drafts,
            eos=frozenset() if params.ignore_eos else self._eos,
            stream=self.text.stream(params.stop_strings) if self.text else None,
            on_chunk=on_chunk,
            session=session,
        )

    def _ids(self, prompt: Prompt, *, thinking: bool) -> list[int]:
        if not isinstance(prompt, str) and not _is_list(prompt):
            raise UsageError(f"{PROMPT_FORMS}; not {type(prompt).__name__}")
        if isinstance(prompt, str) and not prompt.strip():
            return []
        if all(is_count(item) for item in prompt):
            if thinking and prompt:
                raise UsageError("thinking is the chat template's: give text or messages, not ids")
            return [int(cast(int, item)) for item in prompt]
        if not isinstance(prompt, str) and not all(_is_message(item) for item in prompt):
            raise UsageError(PROMPT_FORMS)
        if self.text is None:
            raise UsageError("this checkpoint has no tokenizer: give the prompt as token ids")
        return self.text.prompt(cast(str | Sequence[Message], prompt), thinking=thinking)


def _wait(pending: set[Future[Completion]], until: str) -> set[Future[Completion]]:
    """Wait for the first of some requests to end, or to fail; those left. Raises what failed."""
    ended, left = wait(pending, return_when=until)
    for generation in ended:
        generation.result()
    return left


def _identity(target: Target) -> str:
    """What keys and values belong to: the target's configuration, types and small weights."""
    parameters = dict(tree_flatten(target.parameters()))
    about = [(name, array.shape, str(array.dtype)) for name, array in sorted(parameters.items())]
    digest = hashlib.sha256(repr((target.config, about)).encode())
    for array in parameters.values():
        if array.ndim == 1 and mx.issubdtype(array.dtype, mx.floating):
            digest.update(bytes(memoryview(array.astype(mx.float32))))
    return digest.hexdigest()


def _prompts(value: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, also of a single one given as it is."""
    single = not _is_list(value) or (
        len(value) > 0 and all(is_count(item) or _is_message(item) for item in value)
    )
    return cast(list[Prompt], [value] if single else list(value))


def _is_list(value: object) -> bool:
    """A sequence of things, not one of characters or bytes?"""
    strings = (str, bytes, bytearray, memoryview)
    return isinstance(value, Sequence) and not isinstance(value, strings)


def _token_list(defaults: dict[str, Any], key: str, config: TargetConfig) -> list[int]:
    """Token ids of a generation_config entry, which may be one number, a list or null."""
    found = defaults.get(key)
    many = found if isinstance(found, list) else [] if found is None else [found]
    if not all(is_count(token) and 0 <= token < config.vocab_size for token in many):
        raise CheckpointError(f"generation_config.json: {key} is {found!r}, not token ids")
    return many


def _is_message(item: object) -> bool:
    return isinstance(item, dict) and "role" in item and bool({"content", "tool_calls"} & set(item))


def load(
    model: str | Path,
    drafter: str | Path | None = "auto",
    *,
    bits: int | None = None,
    max_batch: int = 8,
    max_queue: int = 256,
    force: bool = False,
) -> Engine:
    """Load a target and its drafter.

    model: a folder, a Hub name, or "demo", the embedded pair. drafter: the same, "auto" for
    `<model>-assistant` where there is one, None for none. bits: 4 or 8 quantizes both while
    loading; beside a target that is quantized already, the drafter becomes so, too.
    max_batch: most requests that decode side by side, up to 8. max_queue: most that wait for it.
    force: load it also where it seems too large for the memory.

    Raises ModelNotFoundError, CheckpointError, UsageError, NotEnoughMemoryError.
    """
    if not is_count(max_batch) or not 1 <= max_batch <= SIZES[-1]:
        raise UsageError(f"max_batch must lie in 1 .. {SIZES[-1]}, not {max_batch!r}")
    if not is_count(max_queue) or max_queue < 1:
        raise UsageError(f"max_queue must be a whole number from 1 on, not {max_queue!r}")
    pair = open_pair(model, drafter, bits=bits, force=force)
    return Engine(pair, max_batch=int(max_batch), max_queue=int(max_queue))
