"""What is wrong with a request, before it is put into the shape of a protocol."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mlx_gemma_mtp.errors import (
    ClosedError,
    NotEnoughMemoryError,
    PromptTooLongError,
    QueueFullError,
    RequestTimeoutError,
    UsageError,
    WorkerDiedError,
)

log = logging.getLogger("mlx_gemma_mtp.server")

SETTING = re.compile(r"(?:the )?([a-z_]+)")  # at the start of the message of a UsageError

RETRY_SECONDS = 5  # until a row or memory may be free

# What the engine says of these is for programs that load it themselves.
QUEUE_FULL = "the queue is full: try again later, or start mgm serve with a larger --max-queue"
STOPPING = "the server is stopping"

INTERNAL = "the request failed in the server: its log says why"


class Failure(Exception):
    """An error for a client.

    kind: its type, in OpenAI's words. code: for programs, such as "context_length_exceeded". field:
    of the body, as "messages.0.content"; None if it is about no field. retry_after: seconds.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        field: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.code = code
        self.field = field
        self.retry_after = retry_after


@contextmanager
def of_field(name: str) -> Iterator[None]:
    """Raise a UsageError of the engine as a Failure of this field."""
    try:
        yield
    except PromptTooLongError as error:
        raise failure_of(error, {"prompt": name}) from None
    except UsageError as error:
        raise Failure(str(error), field=name) from None


def failure_of(error: BaseException, names: Mapping[str, str] | None = None) -> Failure:
    """Return an error of the engine as one for a client.

    names: what a protocol calls the settings whose wrong values an error starts with, and its
    "prompt". Anything that is not meant for people is logged, and the client only gets to know that
    it happened.
    """
    if isinstance(error, Failure):
        return error
    message, names = str(error), names or {}
    match error:
        case PromptTooLongError():
            return Failure(message, code="context_length_exceeded", field=names.get("prompt"))
        case UsageError():
            word = SETTING.match(message)
            name = names.get(word[1]) if word else None
            if word and name:
                message = name + message[word.end() :]
            return Failure(message, field=name)
        case QueueFullError():
            code, after = "queue_full", RETRY_SECONDS
            return Failure(QUEUE_FULL, 503, "server_error", code=code, retry_after=after)
        case NotEnoughMemoryError():
            code, after = "not_enough_memory", RETRY_SECONDS
            return Failure(message, 503, "server_error", code=code, retry_after=after)
        case ClosedError():
            return Failure(STOPPING, 503, "server_error", code="unavailable", retry_after=1)
        case WorkerDiedError():
            return Failure(message, 503, "server_error", code="unavailable", retry_after=1)
        case RequestTimeoutError():
            return Failure(message, 504, "server_error", code="timeout")
        case _:
            log.error("a request failed", exc_info=error)
            return Failure(INTERNAL, 500, "server_error", code="internal_error")
