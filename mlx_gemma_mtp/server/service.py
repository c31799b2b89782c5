"""An engine and the requests that clients have of it. Knows nothing of protocols."""

from __future__ import annotations

import time
from functools import partial

from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.many import repeated
from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.failures import Failure, failure_of
from mlx_gemma_mtp.server.run import Run
from mlx_gemma_mtp.server.settings import Settings


class Service:
    """Starts what clients ask for.

    created: seconds since 1970, as lists of models have them. ends: tokens that end a turn.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.created = int(time.time())
        text = engine.text
        self.ends = frozenset(text.end_tokens() if text else ())

    @property
    def model(self) -> str:
        """The name that clients are shown."""
        return self.settings.served[0]

    @property
    def template(self) -> str:
        """The chat template; empty if there is none."""
        return self.engine.text.chat_template if self.engine.text else ""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text. Raises UsageError, also if it cannot fit."""
        self.engine.check_length(text)
        return self.engine.encode(text)

    def raw_ids(self, prompt: str | list[int]) -> list[int]:
        """Return a prompt without a template as token ids; a text follows <bos>.

        Raises UsageError.
        """
        if not isinstance(prompt, str):
            return prompt
        text, ids = self.engine.text, self.encode(prompt)
        start = [] if text is None or text.bos is None else [text.bos]
        return ids if ids[:1] == start else start + ids

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token, which may be a part of a character."""
        text = self.engine.text
        return b"" if text is None else text.bytes_of(token)

    def check_model(self, name: str | None) -> None:
        """Raise a Failure unless this model is served. None and "" are the model itself."""
        if name and name not in self.settings.served:
            served = " or ".join(self.settings.served)
            raise Failure(
                f"the model {name!r:.80} is not served here: use {served}, or start mgm serve "
                "with --served-name NAME",
                404,
                code="model_not_found",
                field="model",
            )

    def start(self, asked: Asked) -> Run:
        """Submit a request, in an event loop. Raises Failure."""
        self.check_model(asked.model)
        run = Run(asked)
        try:
            each = [(prompt, asked.params, None) for prompt in asked.prompts]
            for prompt, params, _ in repeated(each, asked.n):
                submit = partial(
                    self.engine.submit,
                    prompt,
                    params,
                    tools=asked.tools or None,
                    priority=asked.priority,
                )
                run.add(submit)
        except MgmError as error:
            run.cancel()
            raise failure_of(error, asked.names) from None
        return run
