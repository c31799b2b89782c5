"""One answer in one line of numbers. Every number was measured; what was not is left out."""

from __future__ import annotations

from typing import NamedTuple

from rich.filesize import decimal

from mlx_gemma_mtp.engine.results import Stats

COMPARED_FROM = 32  # tokens: a few rounds are no measure


class Gauge(NamedTuple):
    """What stands around an answer.

    plain: tokens/s that plain decoding was measured to give, None where it was not. context: most
    tokens that a text may have here. memory: bytes that MLX holds.
    """

    plain: float | None
    context: int
    memory: int


def line(stats: Stats, gauge: Gauge) -> str:
    """`182 tok · 61.4 tok/s (1.9x vs 32.6) · first token 0.31 s · …`."""
    parts = [f"{stats.generated_tokens} tok", _speed(stats, gauge.plain)]
    if stats.first_token_seconds:
        parts.append(f"first token {stats.first_token_seconds:.2f} s")
    parts += [_drafts(stats), _context(stats, gauge), decimal(gauge.memory)]
    return " · ".join(part for part in parts if part)


def short(count: int) -> str:
    """950, 4.1k, 262k, in thousands."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"


def _speed(stats: Stats, plain: float | None) -> str:
    speed = stats.decode_tokens_per_second
    if not speed:
        return ""
    enough = stats.drafted and stats.generated_tokens >= COMPARED_FROM
    beside = f" ({speed / plain:.1f}x vs {plain:.1f})" if plain and enough else ""
    return f"{speed:.1f} tok/s{beside}"


def _drafts(stats: Stats) -> str:
    if stats.acceptance_rate is None or stats.acceptance_length is None:
        return "no drafts"
    length, rate = stats.acceptance_length, stats.acceptance_rate
    return f"MTP {length:.1f} tok/round, {100 * rate:.0f} % accepted"


def _context(stats: Stats, gauge: Gauge) -> str:
    used = short(stats.prompt_tokens + stats.generated_tokens)
    reused = f" ({short(stats.reused_tokens)} reused)" if stats.reused_tokens else ""
    return f"ctx {used}/{short(gauge.context)}{reused}"
