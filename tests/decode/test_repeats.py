"""What a text is expected to say next, because it said it before."""

from itertools import pairwise

import numpy as np
import pytest

from mlx_gemma_mtp.decode.copies import LEAST, Repeats


def after_last_repeat(text: list[int]) -> list[int]:
    """What followed the last earlier place with the same LEAST tokens; empty if there is none."""
    last = text[-LEAST:]
    ends = [end for end in range(LEAST, len(text)) if text[end - LEAST : end] == last]
    return text[ends[-1] :] if ends and len(last) == LEAST else []


@pytest.mark.parametrize("alphabet", [2, 3, 50])
def test_what_followed_the_last_earlier_place_is_expected(
    alphabet: int, rng: np.random.Generator
) -> None:
    text = rng.integers(0, alphabet, 60).tolist()
    for end in range(len(text)):
        followed = after_last_repeat(text[:end])
        expected = Repeats(text[:end]).expected(20)
        assert expected[: len(followed)] == followed[:20]
        assert bool(expected) == bool(followed)


def test_a_copy_is_followed_from_its_first_tokens_to_its_first_difference(
    rng: np.random.Generator,
) -> None:
    text = rng.permutation(1000)[:100].tolist()
    again = text[20:60]
    repeats = Repeats(text)
    for at, token in enumerate(again):
        expected = repeats.expected(5)
        assert expected == ([] if at < LEAST else text[20 + at : 25 + at])
        repeats.extend([token])
    repeats.extend([text[60], 1001])
    assert repeats.expected(5) == []


def test_a_place_is_kept_while_it_is_right() -> None:
    first, other, after = list(range(20)), [90, *range(8, 16), 91], list(range(16, 20))
    repeats = Repeats([*first, *other])
    repeats.extend(first[:LEAST])
    repeats.extend(first[LEAST:16])
    # The last tokens stand in `other` as well, but those before them stand in `first` only.
    assert repeats.expected(4) == after


def test_a_text_that_repeats_its_end_is_expected_to_do_so_again() -> None:
    repeats = Repeats([50, *[1, 2, 3] * 4])
    assert repeats.expected(7) == [1, 2, 3, 1, 2, 3, 1]


def test_it_makes_no_difference_in_how_many_pieces_a_text_comes(rng: np.random.Generator) -> None:
    for _ in range(50):
        text = rng.integers(0, 2, 80).tolist()
        cuts = [0, *sorted(rng.integers(0, 81, 20)), 80]
        whole, pieces = Repeats(), Repeats()
        for token in text:
            whole.extend([token])
        for start, end in pairwise(cuts):
            pieces.extend(text[start:end])
        assert bool(whole.expected(1)) == bool(pieces.expected(1))
        single = Repeats(text)
        assert bool(single.expected(1)) == bool(pieces.expected(1))
