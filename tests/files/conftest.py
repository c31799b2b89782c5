"""The fixtures `tiny` and `broken`: a pair on disk, and a copy that a test may break."""

from helpers.broken import breakable_pair, tiny_pair  # noqa: F401
