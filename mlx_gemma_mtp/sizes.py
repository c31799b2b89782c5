"""Bytes as people read them, in decimal units."""

from __future__ import annotations


def in_words(num_bytes: float) -> str:
    """12.3 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= 0.95 * size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"
