"""Log-probabilities of an answer, in the shape that most protocols share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_gemma_mtp.engine.results import Chunk, TokenLogprobs
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.service import Service


def reported(service: Service, asked: Asked, chunk: Chunk) -> Sequence[TokenLogprobs]:
    """Return the log-probabilities of a chunk, without those of the token that ends the output."""
    found = chunk.logprobs or ()
    if chunk.finish_reason != "stop" or not found:
        return found
    is_end = found[-1].token in {*service.ends, *asked.params.stop_token_ids}
    return found[:-1] if is_end else found


def logprob_entries(service: Service, found: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """Return log-probabilities as chats, responses and Ollama have them."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = service.bytes_of(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": [*raw]}

    return [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(*top) for top in one.top]}
        for one in found
    ]
