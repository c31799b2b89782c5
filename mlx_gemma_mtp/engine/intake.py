"""From what a caller gives to a request: prompts and settings, checked, with the model's defaults.

Runs in the caller's thread. Knows nothing of the device, or of other requests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mlx_gemma_mtp.decode.constraint import Constraint
from mlx_gemma_mtp.decode.params import FORMS, MAX_BIAS, SamplingParams
from mlx_gemma_mtp.engine.defaults import STOP, SUPPRESS
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.prompts import prompt_ids
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.results import Chunk
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.errors import ModelNotFoundError, UsageError
from mlx_gemma_mtp.text.call_grammar import call_rules
from mlx_gemma_mtp.text.constraints import Rule
from mlx_gemma_mtp.text.forms import form_of
from mlx_gemma_mtp.text.messages import Prompt

GEMMA_EOS = 1  # for a checkpoint that names no end of a turn


class Intake:
    """Makes the requests of an engine."""

    def __init__(self, pair: OpenPair, *, copies: bool) -> None:
        """copies: as `load`."""
        self._text = pair.text
        self._config = pair.target.config
        self._has_drafter = pair.drafter is not None
        self._may_draft = self._has_drafter or copies
        self._defaults = pair.defaults
        self._eos = frozenset(pair.default_tokens("eos_token_id") or [GEMMA_EOS])
        self._suppressed = pair.default_tokens(SUPPRESS)
        self._stop = SamplingParams(stop=pair.defaults.get(STOP) or ()).stop_strings

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        on_chunk: Callable[[Chunk], None] | None = None,
        session: Session | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Request:
        """Check a prompt and its settings, and make a request of them. Raises UsageError."""
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise UsageError(f"settings must be SamplingParams, not {type(params).__name__}")
        ids = prompt_ids(prompt, self._text, self._config, thinking=params.thinking)
        room = self._config.max_position_embeddings - len(ids)
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
        beyond = next((one for one in eos if one >= self._config.vocab_size), None)
        if beyond is not None:
            raise UsageError(
                f"stop_token_ids: {beyond} is outside the vocabulary of "
                f"{self._config.vocab_size} tokens"
            )
        constraint = self._constraint(ids, params, tools, eos)
        # Where an answer with a form ends is up to the form, not to the checkpoint's stop strings.
        takes_own = params.ignore_eos or any(getattr(params, form) is not None for form in FORMS)
        stop = params.stop_strings if takes_own else params.stop_strings + self._stop
        stream = self._text.stream(stop) if self._text else None
        return Request(ids, resolved, most, drafts, eos, stream, on_chunk, session, constraint)

    def _constraint(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        tools: Sequence[Mapping[str, Any]],
        eos: Collection[int],
    ) -> Constraint | None:
        """Return the rule that these settings make for the output. Raises UsageError."""
        text, choice, budget = self._text, params.tool_choice, params.thinking_budget
        given = [name for name in FORMS if getattr(params, name) is not None]
        must_call = choice not in ("auto", "none")
        named = [choice] if must_call and choice != "required" else []
        asked = given + [f"tool_choice={choice!r}"] * (choice != "auto")
        asked += ["thinking_budget"] * (budget is not None)
        if not asked:
            return None
        if text is None:
            raise UsageError(f"{asked[0]} needs a tokenizer, and this checkpoint has none")
        markers, names = text.markers, [tool["function"]["name"] for tool in tools]
        has_calls = markers.call is not None and markers.quote is not None
        for message, wrong in {
            f"{asked[0]} says what ends the output, and ignore_eos that nothing does: "
            "set one of them": (given or must_call) and params.ignore_eos,
            "thinking_budget: this checkpoint's tokenizer has no markers of thoughts": (
                budget is not None and markers.channel is None
            ),
            f"{asked[0]} forms an answer, and {asked[-1]} asks for a call: set one of them": (
                given and must_call
            ),
            f"{asked[0]} needs tools": must_call and not tools,
            f"{asked[0]}: this checkpoint's tokenizer has no markers of calls": (
                must_call and not has_calls
            ),
            f"{asked[0]} is not among the tools: {', '.join(names)}": not {*named} <= {*names},
            f"stop_token_ids cannot have markers of thoughts and calls with {asked[0]}": (
                given or must_call
            )
            and {*params.stop_token_ids} & {*markers},
        }.items():
            if wrong:
                raise UsageError(message)
        barred = [markers.call] if choice == "none" and markers.call is not None else []
        size = self._config.vocab_size
        if not given and not must_call:
            return Rule(text, prompt, size, eos, barred=barred, budget=budget)
        barred += [one for one, bias in params.logit_bias.items() if bias <= -MAX_BIAS]
        barred += self._suppressed
        rules, starts = [], []
        if given:
            rules.append(f"answer: {form_of(*(getattr(params, name) for name in FORMS))}")
            starts.append("answer")
        if must_call or (tools and choice == "auto" and has_calls):
            chosen = [tool for tool in tools if tool["function"]["name"] in (named or names)]
            rules.append(call_rules(chosen, markers))
            starts.append("call" if named else "call+")
        grammar = "\n".join([f"start: {' | '.join(starts)}", *rules])
        try:
            match = text.grammars.start(grammar)
        except UsageError as error:
            raise UsageError(f"{asked[0]} cannot be followed: {error}") from None
        return Rule(text, prompt, size, eos, match=match, barred=barred, budget=budget)
