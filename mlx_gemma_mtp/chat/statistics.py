"""The statistics of one answer in a few words. Anything that was not measured is left out."""

from __future__ import annotations

from rich.filesize import decimal

from mlx_gemma_mtp.engine.results import Stats

MIN_COMPARED = 32  # tokens: fewer rounds are too few to compare speeds


def parts(stats: Stats, *, plain: float | None, context: int, memory: int) -> list[str]:
    """Return `182 tok`, `61.4 tok/s (1.9x plain speed, 32.6)`, `first token 0.31 s` and more.

    plain: tokens/s measured without drafts, if any. context: its size in tokens. memory: bytes that
    MLX holds.
    """
    found = [f"{stats.generated_tokens} tok"]
    if speed := stats.decode_tokens_per_second:
        compared = plain and stats.drafted and stats.generated_tokens >= MIN_COMPARED
        gain = f" ({speed / plain:.1f}x plain speed, {plain:.1f})" if plain and compared else ""
        found.append(f"{speed:.1f} tok/s{gain}")
    if stats.first_token_seconds:
        found.append(f"first token {stats.first_token_seconds:.2f} s")
    if stats.acceptance_rate is None:
        found.append("no drafts")
    else:
        length, rate = stats.acceptance_length, stats.acceptance_rate
        found.append(f"{length:.1f} tok/round, {rate:.0%} of draft tokens accepted")
    used = short(stats.prompt_tokens + stats.generated_tokens)
    reused = f" ({short(stats.reused_tokens)} reused)" if stats.reused_tokens else ""
    return [*found, f"ctx {used}/{short(context)}{reused}", decimal(memory)]


def short(count: int) -> str:
    """Return 950, 4.1k or 262k: thousands of tokens."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"
