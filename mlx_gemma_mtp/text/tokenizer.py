"""The tokenizer and chat templates of a checkpoint: prompts as token ids, and their text.

Reads the tokenizer's own files, and of config.json only its <bos>. Knows nothing of models, engines
and terminals, nor of what a model's markers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import CheckpointError, MgmError, UsageError, one_line
from mlx_gemma_mtp.files.checkpoint import read_json
from mlx_gemma_mtp.text import template
from mlx_gemma_mtp.text.channels import THOUGHT
from mlx_gemma_mtp.text.detokenizer import Detokenizer, keeps_all, token_bytes
from mlx_gemma_mtp.text.disguise import Disguise, check_writable
from mlx_gemma_mtp.text.grammar import Grammars
from mlx_gemma_mtp.text.markers import MARKERS, markers_of
from mlx_gemma_mtp.text.messages import Message, is_answer, normalized
from mlx_gemma_mtp.text.text_stream import TextStream
from mlx_gemma_mtp.text.tool_turns import in_json, laid_out
from mlx_gemma_mtp.text.tools import Tool, declared, for_google

# Called before a prompt is encoded, with a lower bound of its tokens; it may raise.
Check = Callable[[int], object]

LONG = 10_000  # characters, which take about 7 ms, or token ids

BOS = "<bos>"
# What ends a model's turn: its own end, and the result of a tool, which another writes.
TURN_ENDS = ("<turn|>", "<|tool_response>")
GOOGLES = "tool_responses"  # what all of Google's templates read, and no others


class Text:
    """The tokenizer and chat templates of a checkpoint.

    Messages are text only: a special token that is spelled out in one becomes ordinary tokens, so
    nobody can forge a turn. Special tokens come from the template, or as ids.

    bos: the id that starts every text; None if there is none. markers: see Markers.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError."""
        from tokenizers import Tokenizer

        self.folder = folder
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
            self._bytes_of = token_bytes(self._tokenizer)
        except Exception as error:  # tokenizers raises bare Exception for a broken file
            raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from error
        # No token has more characters than bytes.
        self._longest = max(map(len, self._bytes_of.values()), default=1)
        self._keeps_all = keeps_all(self._tokenizer)
        # Training tools save the length that they cut and pad their texts to.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._templates = template.read_templates(folder)
        self._named = _special_tokens(folder)
        self.bos = self._bos(folder)
        if self.bos is not None:  # whatever tokenizer_config.json says, a template may write it
            self._named["bos_token"] = str(self._tokenizer.id_to_token(self.bos))
        added = self._tokenizer.get_added_tokens_decoder()
        self.markers = markers_of({token.content: number for number, token in added.items()})
        shown = {*MARKERS, *TURN_ENDS, *self._named.values()}
        marked = {number: t for number, t in added.items() if t.special or t.content in shown}
        self._special_ids = frozenset(marked)
        self._disguise = Disguise([token.content for token in marked.values()])

    @property
    def has_template(self) -> bool:
        """True if there is a chat template. Without one, text is continued as it is."""
        return bool(self._templates)

    @property
    def chat_template(self) -> str:
        """The chat template, as Jinja's source; empty if there is none by that name."""
        return self._templates.get(template.DEFAULT, "")

    @cached_property
    def grammars(self) -> Grammars:
        """The grammars over its tokens."""
        return Grammars(self._bytes_of, self._special_ids, self._encode_plain)

    def has_token(self, token: int) -> bool:
        """True if this id is a token. A padded vocabulary has ids that are not."""
        return token in self._bytes_of

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, a part of a character perhaps; none for other ids."""
        return self._bytes_of.get(token, b"")

    def end_tokens(self) -> list[int]:
        """Return the ids that end a turn, by the names of tokens and by the chat template."""
        names = [self._named.get("eos_token"), self._named.get("eot_token"), *TURN_ENDS]
        names.append(self._turn_end())
        ids = [self._tokenizer.token_to_id(name) for name in names if name]
        return sorted({number for number in ids if number is not None})

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens included; adds none at its start."""
        check_writable(text)
        if len(text) < LONG:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        # The same, while other threads run.
        return list(self._tokenizer.encode_batch([text], add_special_tokens=False)[0].ids)

    def fewest_tokens(self, text: str) -> int:
        """Return a lower bound of the tokens of a text, from its length; 0 if nothing is known."""
        return -(-len(text) // self._longest) if self._keeps_all else 0

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        check: Check | None = None,
        **options: Any,
    ) -> list[int]:
        """Return the token ids of a conversation, ready for the model's next turn.

        An answer at the end of the messages is continued as the model would: its text follows what
        opens the turn, and its "reasoning" if no thought was closed there.

        tools: as `declared` takes them. options go to the chat template: `enable_thinking=True` (by
        default off). Thoughts at the start of a model's message are left out, with their markers;
        other markers are text. Raises UsageError for tools that `declared` refuses and messages
        that `normalized` or the template refuses, and CheckpointError if only templates for other
        uses are there.
        """
        schemas = declared(tools)
        chosen = template.choose(self._templates, tools=bool(schemas))
        options = {"enable_thinking": False} | options
        if options["enable_thinking"] and "enable_thinking" not in chosen:
            raise UsageError("this checkpoint's chat template cannot switch thinking on")
        turns, google = normalized(messages), GOOGLES in chosen
        try:
            if schemas:
                options["tools"] = self._disguise.put_on(for_google(schemas) if google else schemas)
            turns = self._disguise.put_on(turns if google else in_json(turns))
        except RecursionError:
            raise UsageError(template.TOO_DEEP) from None
        except (TypeError, ValueError) as error:
            raise UsageError(f"the result of a tool is not JSON: {one_line(error)}") from None
        options = self._named | options
        started = turns.pop() if is_answer(turns[-1]) else None

        def write(shown: list[Message]) -> str:
            return template.render(chosen, shown, add_generation_prompt=True, **options)

        written = laid_out(turns, write, google=google)
        if written.rstrip().endswith(TURN_ENDS[0]):
            written += self._model_turn(chosen, options)
        if started is not None:
            written += self._start_of_answer(started, after=written)
        return self._after_bos(self._encode_disguised(written, check))

    def prompt(
        self,
        prompt: str | Sequence[Message],
        *,
        thinking: bool = False,
        tools: Sequence[Tool] | None = None,
        check: Check | None = None,
    ) -> list[int]:
        """Return the token ids of a prompt. A string is one user turn if there is a chat template.

        Raises as `chat`, and UsageError for thinking or tools without a template.
        """
        if not isinstance(prompt, str):
            return self.chat(prompt, tools, check, enable_thinking=thinking)
        if not self.has_template and not thinking and not declared(tools):
            return self._after_bos(self._encode_plain(prompt, check))
        turns = [{"role": "user", "content": prompt}]
        return self.chat(turns, tools, check, enable_thinking=thinking)

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """Return a new stream of text that ends at any of the stop strings. <bos> has no text."""
        return TextStream(Detokenizer(self._bytes_of, self.bos), stop, self.markers)

    def _bos(self, folder: Path) -> int | None:
        """Return the id of <bos> by its name, or else by the configs."""
        named = self._tokenizer.token_to_id(self._named.get("bos_token", ""))
        if named is not None:
            return int(named)
        for path in (folder / "config.json", folder / "generation_config.json"):
            raw = read_json(path) if path.is_file() else {}
            for section in (raw, raw.get("text_config")):
                found = section.get("bos_token_id") if isinstance(section, dict) else None
                if isinstance(found, int) and self.has_token(found):
                    return found
        return self._tokenizer.token_to_id(BOS)

    def _after_bos(self, ids: list[int]) -> list[int]:
        """Return the ids after exactly one <bos>, whether or not a template writes it."""
        if self.bos is None:
            return ids
        return [self.bos, *dropwhile(self.bos.__eq__, ids)]

    def _model_turn(self, chosen: str, options: Mapping[str, Any]) -> str:
        """Return what a template opens the model's turn with.

        Google's leave it out after the result of a call that has text in its message.
        """
        turns = [{"role": "user", "content": "Hi"}]
        before, after = (
            template.render(chosen, turns, add_generation_prompt=opens, **options)
            for opens in (False, True)
        )
        return after.removeprefix(before) if after != before else ""

    def _start_of_answer(self, message: Message, after: str) -> str:
        """Return the thought and text of a disguised message, as they follow the turn's opening."""
        content, thought = message["content"], message.get("reasoning", "")
        opens, closes = f"{MARKERS[0]}{THOUGHT}", MARKERS[1]
        if after.endswith(opens):  # as after the result of a tool
            return f"{thought}\n{closes}{content}" if thought else f"{closes}{content}"
        may_think = self.markers.channel is not None and not after.endswith(closes)
        return f"{opens}{thought}\n{closes}{content}" if thought and may_think else content

    def _turn_end(self) -> str | None:
        """Return the special token with which the template closes an answer, if it does."""
        answer = "The answer."
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
        try:
            chosen = template.choose(self._templates, tools=False)
            written = template.render(chosen, turns, add_generation_prompt=False, **self._named)
        except MgmError:  # such a template says nothing of ends; a prompt will show its fault
            return None
        _, shown, rest = written.rpartition(answer)
        found = self._disguise.special.match(rest.lstrip()) if shown else None
        return found[0] if found else None

    def _encode_plain(self, text: str, check: Check | None = None) -> list[int]:
        """Return the token ids of a text in which nothing is a special token."""
        return self._encode_disguised(self._disguise.put_on(text), check)

    def _encode_disguised(self, written: str, check: Check | None = None) -> list[int]:
        """Return the token ids of a text in which disguised characters start no special token."""
        if check is not None:
            check(self.fewest_tokens(written))
        return [*chain.from_iterable(map(self.encode, self._disguise.parts(written)))]


def _special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens that the tokenizer's configs name, as templates take them."""
    found: dict[str, str] = {}
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        raw = read_json(path) if path.is_file() else {}
        extra = raw.get("extra_special_tokens")  # by name, or a list
        for name, token in (raw | (extra if isinstance(extra, dict) else {})).items():
            content = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(content, str):
                found[name] = content
    return found
