"""The engine: prompts in, texts out. One thread of its own does all MLX work.

MLX's streams belong to threads, so whoever calls, from whichever thread, only submits work here
and waits for it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import mlx.core as mx

from mlx_gemma_mtp import hub, weights
from mlx_gemma_mtp.batch import SIZES, Batch
from mlx_gemma_mtp.config import TargetConfig
from mlx_gemma_mtp.drafter import Drafter
from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.request import Chunk, Completion, Request
from mlx_gemma_mtp.sampling import SamplingParams, is_count
from mlx_gemma_mtp.speculate import PlayRound, round_player
from mlx_gemma_mtp.target import Target
from mlx_gemma_mtp.text import Message, Prompt, Text
from mlx_gemma_mtp.worker import mlx_worker

AUTO_DRAFT_TOKENS = 3
GEMMA_EOS = 1  # for a checkpoint without a generation_config
PROMPT_FORMS = 'a prompt is text, a list of token ids, or a list of {"role", "content"} messages'


def load(
    model: str | Path,
    drafter: str | Path | None = "auto",
    *,
    bits: int | None = None,
    max_batch: int = 8,
) -> Engine:
    """Load a target and its drafter.

    model: a folder, a Hub name, or "demo", the embedded pair. drafter: the same, "auto" for
    `<model>-assistant` where there is one, None for none. bits: 4 or 8 quantizes while loading.
    max_batch: most requests that decode side by side, up to 8.

    Raises ModelNotFoundError, CheckpointError, UsageError.
    """
    if not is_count(max_batch) or not 1 <= max_batch <= SIZES[-1]:
        raise UsageError(f"max_batch must lie in 1 .. {SIZES[-1]}, not {max_batch!r}")
    folder, beside = hub.find_pair(model, drafter)

    def read() -> tuple[Target, Drafter | None]:
        target = weights.load_target(folder, bits=bits)
        if beside is None:
            return target, None
        return target, weights.load_drafter(beside, target.config, bits=bits)

    defaults = weights.read_generation_config(folder)
    text = Text(folder) if (folder / "tokenizer.json").exists() else None
    models = mlx_worker().submit(read).result()
    return Engine(*models, text=text, defaults=defaults, max_batch=max_batch)


class Engine:
    """A loaded pair. Made by `load`; a context manager; may be used from any thread."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        *,
        text: Text | None,
        defaults: dict[str, Any],
        max_batch: int,
    ) -> None:
        self.text = text
        self.config = target.config
        self.has_drafter = drafter is not None
        self._models: tuple[Target, PlayRound] | None = (target, round_player(target, drafter))
        self._defaults = defaults
        self._max_batch = max_batch
        self._eos = frozenset(_token_list(defaults, "eos_token_id", self.config) or [GEMMA_EOS])
        self._suppressed = _token_list(defaults, "suppress_tokens", self.config)

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

        The engine cannot be used afterwards; closing twice is fine.
        """
        if self._models is not None:
            self._models = None
            mlx_worker().submit(mx.clear_cache).result()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """The texts of several prompts, up to max_batch of them decoding side by side.

        A prompt is a string (one user turn), a list of token ids, or a list of messages
        {"role", "content"}; a single one may be given as it is. `params` are those of all
        prompts, or one for each. The results are in the order of the prompts.

        Raises UsageError for a prompt or setting that cannot be honoured, before any work.
        """
        many = _prompts(prompts)
        each = list(params) if isinstance(params, Sequence) else [params] * len(many)
        if len(each) != len(many):
            raise UsageError(f"{len(many)} prompts but {len(each)} settings: give one for each")
        requests = [self._request(one, own) for one, own in zip(many, each, strict=True)]
        stop = threading.Event()
        for start in range(0, len(requests), self._max_batch):
            group = requests[start : start + self._max_batch]
            job = mlx_worker().submit(partial(self._run, group, stop))
            try:
                job.result()
            except BaseException:
                stop.set()
                raise
        return [request.completion for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Chunk]:
        """The text of one prompt, piece by piece as it becomes certain.

        Work begins when the first piece is asked for; closing the iterator stops it within one
        round. Errors as `generate`.
        """
        chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        return self._pieces(self._request(prompt, params, chunks.put), chunks)

    def _pieces(self, request: Request, chunks: queue.SimpleQueue[Chunk | None]) -> Iterator[Chunk]:
        stop = threading.Event()
        job = mlx_worker().submit(partial(self._run, [request], stop))
        job.add_done_callback(lambda _: chunks.put(None))
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
            job.result()  # raises what ended the job early
        finally:
            stop.set()

    @property
    def _open_models(self) -> tuple[Target, PlayRound]:
        if self._models is None:
            raise MgmError("this engine is closed: load the model again")
        return self._models

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Request:
        """Check a prompt and its settings, and lay them out as a request."""
        _ = self._open_models  # a closed engine says so here, not on the worker
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise UsageError(f"settings come as SamplingParams, not {type(params).__name__}")
        ids = self._ids(prompt)
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
        drafts = params.num_draft_tokens
        if drafts == "auto":
            drafts = AUTO_DRAFT_TOKENS if self.has_drafter else 0
        elif drafts and not self.has_drafter:
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
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str) and not _is_list(prompt):
            raise UsageError(f"{PROMPT_FORMS}; not {type(prompt).__name__}")
        if isinstance(prompt, str) and not prompt.strip():
            return []
        if all(is_count(item) for item in prompt):
            return [int(cast(int, item)) for item in prompt]
        if not isinstance(prompt, str) and not all(_is_message(item) for item in prompt):
            raise UsageError(PROMPT_FORMS)
        if self.text is None:
            raise UsageError("this checkpoint has no tokenizer: give the prompt as token ids")
        return self.text.prompt(cast(str | Sequence[Message], prompt))

    def _run(self, requests: list[Request], stop: threading.Event) -> None:
        """Decode a group of requests to their ends, or until told to stop; on the worker."""
        target, play_round = self._open_models
        leaving = mlx_worker().leaving

        def cancelled() -> bool:
            return stop.is_set() or leaving.is_set() or self._models is None

        size = next(size for size in SIZES if size >= len(requests))
        batch = Batch(target, play_round, size, self._suppressed)
        for row, request in enumerate(requests):
            batch.join(row, request, cancelled)
        batch.decode(cancelled)


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
