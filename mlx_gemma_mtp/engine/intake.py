"""From what a caller gives to a request: prompts and settings, checked, with the model's defaults.

Runs in the caller's thread. Knows nothing of the device, or of other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlx_gemma_mtp.decode.params import FORMS, MAX_BIAS, SamplingParams, is_count, is_duration
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.engine.defaults import EOS, GENERATION, STOP, token_ids
from mlx_gemma_mtp.engine.prompts import encoded
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Chunk
from mlx_gemma_mtp.engine.rules import rule_of
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.text.functions import Schema
from mlx_gemma_mtp.text.messages import Prompt
from mlx_gemma_mtp.text.tokenizer import Text
from mlx_gemma_mtp.text.tools import Tool, declared

Tools = Sequence[Any] | None

GEMMA_EOS = 1  # for a checkpoint that names no end of a turn


def check_settings(params: object, priority: object, timeout: object) -> None:
    """Raise UsageError unless a request may have these, as of `Engine.submit`."""
    if not is_count(priority):
        raise UsageError(f"priority must be an integer, not {priority!r}")
    if timeout is not None and not is_duration(timeout):
        raise UsageError(f"timeout must be more than 0 seconds, not {timeout!r}")
    if params is not None and not isinstance(params, SamplingParams):
        raise UsageError(f"settings must be SamplingParams, not {type(params).__name__}")


class Intake:
    """Makes the requests of an engine."""

    def __init__(
        self,
        text: Text | None,
        defaults: Mapping[str, Any],
        budget: Budget,
        *,
        has_drafter: bool,
        copies: bool,
    ) -> None:
        """defaults: as of `OpenPair`. copies: as `load`."""
        config = budget.pair.target
        ends = token_ids(defaults.get(EOS), config.vocab_size, f"{GENERATION}: {EOS}")
        self._budget = budget
        self._text = text
        self._config = config
        self._has_drafter = has_drafter
        self._may_draft = has_drafter or copies
        self._defaults = dict(defaults)
        self._eos = frozenset(ends or [GEMMA_EOS])
        self._stop = SamplingParams(stop=defaults.get(STOP) or ()).stop_strings

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        on_chunk: Callable[[Chunk], object] | None = None,
        session: Session | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Request:
        """Check a prompt and its settings, and make a request of them. Raises UsageError."""
        if on_chunk is not None and not callable(on_chunk):
            raise UsageError(f"on_chunk must be a function, not {on_chunk!r}")
        check_settings(params, priority, timeout)
        params = SamplingParams() if params is None else params
        schemas, thinking = declared(tools), params.thinking
        ids = encoded(prompt, self._text, self._budget, thinking=thinking, tools=schemas)
        if not ids:
            raise UsageError("the prompt is empty")
        request = self.request_of(ids, params, on_chunk, session, schemas)
        request.priority, request.timeout = priority, timeout
        return request

    def request_of(
        self,
        ids: list[int],
        params: SamplingParams,
        on_chunk: Callable[[Chunk], object] | None,
        session: Session | None,
        schemas: Sequence[Schema],
    ) -> Request:
        """Make a request of a prompt that is checked. Raises UsageError."""
        self._budget.check_prompt(len(ids))
        room = self._budget.context - len(ids)
        if params.stop_strings and self._text is None:
            raise UsageError("stop strings need a tokenizer, and this checkpoint has none")
        asked = params.num_draft_tokens
        drafts = asked if isinstance(asked, int) else None if self._may_draft else 0
        if drafts and not self._has_drafter:
            raise ModelNotFoundError(
                f"{drafts} draft tokens need a drafter, and none is loaded: "
                "name one, or set num_draft_tokens to 0"
            )
        most, resolved = min(params.max_tokens or room, room), params.resolved(self._defaults)
        eos = (frozenset() if params.ignore_eos else self._eos) | {*map(int, params.stop_token_ids)}
        size = self._config.vocab_size
        for name, ids_of in (("stop_token_ids", eos), ("logit_bias", params.logit_bias)):
            beyond = next((one for one in ids_of if one >= size), None)
            if beyond is not None:
                raise UsageError(f"{name}: {beyond} is outside the vocabulary of {size} tokens")
        rule = rule_of(params, schemas, self._text, ids, size, ends=eos)
        call = None if self._text is None else self._text.markers.call
        if params.tool_choice == "none" and call is not None and call < size:
            resolved = replace(resolved, logit_bias={**resolved.logit_bias, call: -MAX_BIAS})
        # Where an answer with a form ends is up to the form, not to the checkpoint's stop strings.
        takes_own = params.ignore_eos or any(getattr(params, form) is not None for form in FORMS)
        stop = params.stop_strings if takes_own else params.stop_strings + self._stop
        stream = self._text.stream(stop) if self._text else None
        return Request(ids, resolved, most, drafts, eos, stream, on_chunk, session, rule, schemas)


def has_rule(params: SamplingParams | None) -> bool:
    """True if it takes time to make a rule of these settings, see `rule_of`."""
    if not isinstance(params, SamplingParams):
        return False
    return params.tool_choice != "auto" or any(getattr(params, one) is not None for one in FORMS)
