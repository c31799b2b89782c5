"""OpenAI's completions: a text or token ids, continued as they are, without a chat template."""

from __future__ import annotations

import asyncio
import codecs
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_gemma_mtp.decode.params import MAX_LOGPROBS
from mlx_gemma_mtp.engine.results import Chunk, TokenLogprobs
from mlx_gemma_mtp.server.answers import start_stream, whole
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.body import read, refused
from mlx_gemma_mtp.server.failures import Failure, of_field
from mlx_gemma_mtp.server.logprobs import reported
from mlx_gemma_mtp.server.protocols.choices import (
    Choice,
    ChoicesBody,
    Frame,
    choice_stream,
    finish_of,
)
from mlx_gemma_mtp.server.protocols.openai import NAMES, statistics
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.text.tokenizer import LONG

MAX_TOKENS = 16  # as OpenAI's, if a body has none
MOST_PROMPTS = 1024  # in one body, times n

FIELDS = NAMES | {"prompt": "prompt"}


class CompletionBody(ChoicesBody):
    """A body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = None
    suffix: Annotated[Any, refused("not supported, as the model only writes what follows")] = None

    def asked(self, prompts: Sequence[list[int]]) -> Asked:
        """Return it in the engine's terms. prompts: as token ids. Raises Failure."""
        most = MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return Asked(
            "completions",
            prompts,
            self.params(FIELDS, most, logprobs=self.logprobs),
            self.model,
            n=self.n or 1,
            priority=self.engine_priority(),
            stream=bool(self.stream),
            names=FIELDS,
        )

    def prompts(self) -> list[str | list[int]]:
        """Return all prompts. Raises a Failure for what is not supported."""
        given, n = self.prompt, self.n or 1
        one = isinstance(given, str) or (given and isinstance(given[0], int))
        found: list[Any] = [given] if one else [*given]
        checks = (
            (
                "prompt",
                1 <= len(found) * n <= MOST_PROMPTS,
                f"must have from 1 to {MOST_PROMPTS // n} texts or lists of token ids",
            ),
            ("best_of", self.best_of in (None, n), f"must be n, which is {n}"),
            (
                "echo",
                not self.echo or self.logprobs is None,
                "is not supported with logprobs: those of a prompt are not computed",
            ),
        )
        for field, good, wrong in checks:
            if not good:
                raise Failure(f"{field} {wrong}", field=field)
        return found


async def completions(request: Request) -> Response:
    """Answer /v1/completions."""
    service: Service = request.app.state.service
    body = await read(request, CompletionBody)
    prompts = body.prompts()
    with of_field("prompt"):
        each = map(service.raw_ids, prompts)  # lazy
        ids = await asyncio.to_thread(list, each) if sum(map(len, prompts)) > LONG else [*each]
    asked = body.asked(ids)
    texts = _Texts(service, asked, prompts if body.echo else [""] * len(prompts))
    frame = Frame(service, "cmpl", "text_completion")
    if asked.stream:
        run = await start_stream(service, request, asked)
        return choice_stream(service, run, frame, texts.choices, **body.wanted)
    run, found = await whole(service, request, asked)
    choices = [_joined(texts, run, number) for number in range(len(found))]
    return JSONResponse(frame(choices, **statistics(found, asked.n)))


def _joined(texts: _Texts, run: Run, number: int) -> Choice:
    """Return the pieces of a completion as one."""
    pieces = [one for chunk in run.chunks(number) for one in texts.choices(number, chunk)]
    joined = {**pieces[-1], "text": "".join(one["text"] for one in pieces)}
    if joined["logprobs"] is not None:
        joined["logprobs"] = {
            name: [value for one in pieces for value in one["logprobs"][name]]
            for name in joined["logprobs"]
        }
    return joined


class _Texts:
    """Makes choices of chunks: their text, whatever its kind.

    echoes: what goes before the output of each prompt, a text or token ids.
    """

    def __init__(
        self, service: Service, asked: Asked, echoes: Sequence[str | Sequence[int]]
    ) -> None:
        self._service = service
        self._asked = asked
        self._echoes = echoes
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}
        self._lengths: Counter[int] = Counter()  # in characters, of the tokens so far

    def choices(self, number: int, chunk: Chunk) -> Iterator[Choice]:
        """Yield those of one chunk of the completion of this number."""
        before = ""
        if number not in self._decoders:
            self._decoders[number] = codecs.getincrementaldecoder("utf-8")("replace")
            echo = self._echoes[number // self._asked.n]
            before = echo if isinstance(echo, str) else self._service.engine.decode(echo)
            self._lengths[number] = len(before)
        finish = chunk.finish_reason and finish_of(chunk.finish_reason, has_calls=False)
        logprobs = None
        if self._asked.params.logprobs is not None:
            logprobs = self._logprobs(number, reported(self._service, self._asked, chunk))
        text = before + chunk.text
        if text or finish or (logprobs and logprobs["tokens"]):
            same = {"index": number, "text": text, "logprobs": logprobs}
            yield {**same, "finish_reason": finish}

    def _logprobs(self, number: int, found: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """Return log-probabilities in the shape of completions. Offsets count characters."""
        offsets, model = [], self._service.engine.text
        for one in found:
            offsets.append(self._lengths[number])
            if model and one.token == model.bos:  # has no text
                continue
            text = self._decoders[number].decode(self._service.bytes_of(one.token))
            self._lengths[number] += len(text)
        return {
            "tokens": [self._shown(one.token) for one in found],
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": [
                {self._shown(token): logprob for token, logprob in (*one.top, one[:2])}
                for one in found
            ],
            "text_offset": offsets,
        }

    def _shown(self, token: int) -> str:
        """Return the text of a token; its bytes if they are a part of a character."""
        raw = self._service.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


routes = [Route("/v1/completions", completions, methods=["POST"])]
