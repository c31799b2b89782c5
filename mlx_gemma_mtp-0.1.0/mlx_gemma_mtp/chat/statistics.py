"""The statistics of one answer in one line. Anything that was not measured is left out."""

from __future__ import annotations

from rich.filesize import decimal

from mlx_gemma_mtp.engine.results import Stats

MIN_COMPARED = 32  # tokens: fewer rounds are too few to compare speeds


def line(stats: Stats, *, plain: float | None, context: int, memory: int) -> str:
    """Return `182 tok · 61.4 tok/s (1.9x vs 32.6) · first token 0.31 s · …`.

    plain: tokens/s measured without drafts, if any. context: its size in tokens. memory: bytes that
    MLX holds.
    """
    parts = [f"{stats.generated_tokens} tok"]
    if speed := stats.decode_tokens_per_second:
        compared = plain and stats.drafted and stats.generated_tokens >= MIN_COMPARED
        gain = f" ({speed / plain:.1f}x vs {plain:.1f})" if plain and compared else ""
        parts.append(f"{speed:.1f} tok/s{gain}")
    if stats.first_token_seconds:
        parts.append(f"first token {stats.first_token_seconds:.2f} s")
    if stats.acceptance_rate is None:
        parts.append("no drafts")
    else:
        length, rate = stats.acceptance_length, stats.acceptance_rate
        parts.append(f"MTP {length:.1f} tok/round, {rate:.0%} accepted")
    used = short(stats.prompt_tokens + stats.generated_tokens)
    reused = f" ({short(stats.reused_tokens)} reused)" if stats.reused_tokens else ""
    parts += [f"ctx {used}/{short(context)}{reused}", decimal(memory)]
    return " · ".join(parts)


def short(count: int) -> str:
    """Return 950, 4.1k or 262k: thousands of tokens."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"
