"""An answer of OpenAI's responses, from its first event to its last. Knows nothing of bodies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.server.answers import event
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.failures import Failure
from mlx_gemma_mtp.server.logprobs import logprob_entries, reported
from mlx_gemma_mtp.server.protocols.openai import statistics
from mlx_gemma_mtp.server.protocols.responses_output import DONE, INCOMPLETE, Event, Output
from mlx_gemma_mtp.server.service import Service


class Answer:
    """A response that grows, and the events that say so.

    response: as it is so far.
    """

    def __init__(
        self, service: Service, asked: Asked, response: dict[str, Any], output: Output
    ) -> None:
        self.response = response
        self._service = service
        self._asked = asked
        self._output = output
        self._number = 0  # of the next event

    def start(self) -> Iterator[Event]:
        """Yield the first events."""
        yield "response.created", {"response": self.response}
        yield "response.in_progress", {"response": self.response}

    def beat(self) -> str:
        """Return an event for a silence: Codex leaves after some minutes with comments alone."""
        return self.sent("response.in_progress", {"response": self.response})

    def add(self, chunk: Chunk) -> Iterator[Event]:
        """Yield the events of a chunk."""
        is_answer = chunk.kind == "answer"
        found = reported(self._service, self._asked, chunk) if is_answer else ()
        yield from self._output.add(chunk, logprob_entries(self._service, found))

    def end(self, completion: Completion) -> Iterator[Event]:
        """Yield the last events."""
        status = INCOMPLETE if completion.finish_reason == "length" else DONE
        yield from self._output.close(status)
        took = statistics([completion], 1)
        details = {"reason": "max_output_tokens"} if status == INCOMPLETE else None
        self.response |= took | {
            "status": status,
            "incomplete_details": details,
            "output": self._output.items,
            "usage": _usage(took["usage"]),
        }
        yield f"response.{status}", {"response": self.response}

    def fail(self, failure: Failure) -> str:
        """Return the last event, of an error, as it is sent."""
        error = {"code": failure.code or "server_error", "message": failure.message}
        self.response |= {"status": "failed", "error": error, "output": self._output.items}
        return self.sent("response.failed", {"response": self.response})

    def sent(self, kind: str, fields: Mapping[str, Any]) -> str:
        """Return the next event as it is sent."""
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)


def _usage(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usage of a chat in the words of responses."""
    cached = given["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": given["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": given["completion_tokens"],
        "output_tokens_details": given["completion_tokens_details"],
        "total_tokens": given["total_tokens"],
    }
