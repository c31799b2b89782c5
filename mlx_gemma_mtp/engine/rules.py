"""From the settings of a request to the rule that its output must follow.

Says which settings contradict each other. Knows nothing of the device, or of how a rule is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlx_gemma_mtp.decode.params import FORMS, SamplingParams
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.call_grammar import call_rules
from mlx_gemma_mtp.text.constraints import Rule
from mlx_gemma_mtp.text.forms import form_of
from mlx_gemma_mtp.text.markers import Markers
from mlx_gemma_mtp.text.tokenizer import Text


def rule_of(
    params: SamplingParams,
    tools: Sequence[Mapping[str, Any]],
    text: Text | None,
    prompt: Sequence[int],
    vocab_size: int,
    *,
    ends: Collection[int],
) -> Rule | None:
    """Return the rule of an output; None if it is free. That calls are barred is not part of it.

    tools: their schemas, in OpenAI's form. ends: tokens that end the output. Raises UsageError for
    settings that contradict each other, the tools or the tokenizer, and for a form that cannot be
    followed; MgmError if llguidance is needed and missing.
    """
    given = [name for name in FORMS if getattr(params, name) is not None]
    choice, budget = params.tool_choice, params.thinking_budget
    asked = [*given, *([f"tool_choice={choice!r}"] if choice != "auto" else [])]
    asked += [] if budget is None else ["thinking_budget"]
    if not asked:
        return None
    if text is None:
        raise UsageError(f"{asked[0]} needs a tokenizer, and this checkpoint has none")
    markers = text.markers
    wrong = _wrong(params, given, [tool["function"]["name"] for tool in tools], markers)
    if wrong:
        raise UsageError(wrong)
    grammar = _grammar(params, tools, markers)
    if grammar is None:
        return None if budget is None else Rule(text, prompt, vocab_size, ends, budget=budget)
    try:
        match = text.grammars.start(grammar)
    except UsageError as error:
        raise UsageError(f"{asked[0]} cannot be followed: {error}") from None
    return Rule(text, prompt, vocab_size, ends, match=match, budget=budget)


def _wrong(
    params: SamplingParams, given: Sequence[str], names: Sequence[str], markers: Markers
) -> str | None:
    """Return why these settings cannot be followed. given: the form. names: of the tools."""
    choice = params.tool_choice
    calls = f"tool_choice={choice!r}"
    if choice not in ("auto", "none"):
        if given:
            return f"{given[0]} forms an answer, and {calls} asks for a call: set one of them"
        if not names:
            return f"{calls} needs tools"
        if choice != "required" and choice not in names:
            return f"{calls} is not the name of a tool: {', '.join(names)}"
        if markers.call is None or markers.quote is None:
            return f"{calls}: this checkpoint's tokenizer has no markers of calls"
    elif not given:
        calls = ""
    if params.thinking_budget is not None and markers.channel is None:
        return "thinking_budget: this checkpoint's tokenizer has no markers of thoughts"
    formed = given[0] if given else calls
    if formed and params.ignore_eos:
        return f"{formed} needs an end of the output, and ignore_eos takes it: set one of them"
    if formed and {*params.stop_token_ids} & {*markers}:
        return f"{formed} needs the markers of thoughts and calls: take them from stop_token_ids"
    return None


def _grammar(
    params: SamplingParams, tools: Sequence[Mapping[str, Any]], markers: Markers
) -> str | None:
    """Return the grammar of what follows the thought; None for any text."""
    choice = params.tool_choice
    form = form_of(*(getattr(params, name) for name in FORMS))
    starts = [] if form is None else ["answer"]
    rules = [] if form is None else [f"answer: {form}"]
    may_call = choice == "auto" and form is not None and markers.call is not None
    if choice not in ("auto", "none") or (may_call and tools):
        by_name = {tool["function"]["name"]: tool for tool in tools}
        chosen = [by_name[choice]] if choice in by_name and not may_call else tools
        rules.append(call_rules(chosen, markers))
        starts.append("call+" if choice in ("auto", "required") else "call")
    return "\n".join([f"start: {' | '.join(starts)}", *rules]) if starts else None
