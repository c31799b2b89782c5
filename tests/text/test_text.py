"""Streamed text: nothing is lost, doubled or shown too early, however it is cut into tokens."""

import itertools
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.text.tokenizer import Text

LOST = "\ufffd"  # in place of bytes that are no character
TEXTS = [
    *("Hello", " Hello  there ", "\n\nTwo\n lines\n", "x[i] = y[j]  # \\n stays", "17 + 25 = 42"),
    *("café naïve Ωμέγα", "日本語のテキスト", "😀 at the start, 🌍 in it, at the end 🎉"),
    *(
        "👩‍👩‍👧‍👦🏳️‍🌈🇪🇺",
        "e\u0301 and \u200b and \u202e",
        "tab\tand\x00zero",
        LOST,
        f"a{LOST}b{LOST}",
    ),
    '<|turn>user\nHi<turn|>\n<|channel>thought\n<channel|>{"a": 1}',
]


def stream(text: Text, tokens: Sequence[int], *stop: str) -> list[str]:
    """The text that is certain with each token, and last the text that the end adds."""
    streamed = text.stream(stop)
    return [*(streamed.add(token) for token in tokens), streamed.finish()]


def characters(text: Text, string: str) -> list[list[int]]:
    return [text.encode(character) for character in string]


def as_bytes(text: Text, token: int) -> bytes:
    """The bytes of a token: one byte, or its text."""
    first = text.encode("é")[0] - "é".encode()[0]  # the token of byte 0
    return bytes([token - first]) if first <= token < first + 256 else text.decode([token]).encode()


def flat(parts: Sequence[Sequence[int]]) -> list[int]:
    return [token for part in parts for token in part]


@pytest.mark.parametrize("string", TEXTS)
def test_streamed_pieces_join_to_the_decoded_text(text: Text, string: str) -> None:
    for tokens in (text.encode(string), flat(characters(text, string))):
        assert "".join(stream(text, tokens)) == text.decode(tokens) == string


def test_any_tokens_stream_to_their_bytes_and_only_broken_characters_are_marked(
    text: Text, rng: np.random.Generator
) -> None:
    broken = [*text.encode("a"), *text.encode("😀")[:2], *text.encode("b 😀")]
    cut_off = [[*text.encode("So: "), *text.encode("😀")[:size]] for size in (1, 2, 3)]
    drawn = (rng.integers(4, 2048, 40).tolist() for _ in range(100))
    for tokens in (broken, *cut_off, *drawn):
        joined = "".join(stream(text, tokens))
        data = b"".join(as_bytes(text, token) for token in tokens)
        assert joined == data.decode(errors="replace")
        if LOST not in joined:
            assert joined == text.decode(tokens)


@pytest.mark.parametrize("character", "é日😀")
def test_a_character_is_shown_whole_with_its_last_byte(text: Text, character: str) -> None:
    tokens = text.encode(character)
    assert len(tokens) == len(character.encode())
    once = [*[""] * (len(tokens) - 1), character]
    assert stream(text, [*tokens, *tokens]) == [*once, *once, ""]


def test_bos_has_no_text(text: Text) -> None:
    assert text.bos is not None
    assert "".join(stream(text, [text.bos, *text.encode("Hi"), text.bos])) == "Hi"


def test_two_streams_do_not_mix(text: Text) -> None:
    one, other = text.stream(), text.stream()
    pieces: list[list[str]] = [[], []]
    for left, right in zip(text.encode("😀😀"), text.encode("日日日")[:8], strict=True):
        pieces[0].append(one.add(left))
        pieces[1].append(other.add(right))
    assert ("".join(pieces[0]), one.finish()) == ("😀😀", "")
    assert ("".join(pieces[1]), other.finish()) == ("日日", LOST)


def expected(string: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, of two the longer one, and this."""
    for end in range(1, len(string) + 1):
        starts = [end - len(stop) for stop in stops if string[:end].endswith(stop)]
        if starts:
            return string[: min(starts)], string[min(starts) : end]
    return string, None


def held(string: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the string may still become a stop string."""
    starts = [stop[:size] for stop in stops for size in range(1, len(stop))]
    return max((len(start) for start in starts if string.endswith(start)), default=0)


def assert_stops(text: Text, parts: Sequence[Sequence[int]], stops: Sequence[str]) -> None:
    """Feed tokens and check after each what is out, by the plain rule over strings.

    So no part of a stop string is shown, nearly matching text is shown once it cannot match, text
    that was held back comes out at the end, and nothing follows a stop.
    """
    streamed, out, fed = text.stream(stops), "", b""
    for token in flat(parts):
        out += streamed.add(token)
        fed += as_bytes(text, token)
        whole = fed.decode(errors="ignore")  # without a character that is not complete yet
        before, stop = expected(whole, stops)
        assert streamed.stop == stop
        assert out == (before if stop else whole[: len(whole) - held(whole, stops)])
    assert out + streamed.finish() == expected(fed.decode(), stops)[0]


@pytest.mark.parametrize("stop", ["END", "\n\n", "</s>", "😀", "e😀f", " two words "])
def test_a_stop_string_is_found_wherever_tokens_split_it(text: Text, stop: str) -> None:
    for cut in itertools.product([False, True], repeat=min(len(stop) - 1, 5)):
        at = [0, *(place for place, is_cut in enumerate(cut, 1) if is_cut), len(stop)]
        pieces = [stop[start:end] for start, end in itertools.pairwise(at)]
        parts = [text.encode(piece) for piece in ("Some text", *pieces, "and more")]
        assert_stops(text, parts, [stop])
        assert "".join(stream(text, flat(parts), stop)) == "Some text"


def test_a_stop_string_inside_the_text_of_one_token_ends_the_text_there(text: Text) -> None:
    tokens = text.encode(" capital of")
    assert any(text.decode([token]) == " capital" for token in tokens)
    for stop, left in (("pit", " ca"), (" ", ""), ("c", " "), ("capital", " "), ("al", " capit")):
        assert stream(text, tokens, stop)[:2] == [left, ""]
        assert_stops(text, [tokens], [stop])


def test_a_very_long_stop_string_takes_no_time(text: Text) -> None:
    start = time.perf_counter()
    assert "".join(stream(text, 20 * text.encode("word by word "), "word " * 1_000_000))
    assert time.perf_counter() - start < 2  # 240 tokens; minutes if each looked at all of it


def test_stop_strings_follow_the_rule_for_any_text_stops_and_tokens(
    text: Text, rng: np.random.Generator
) -> None:
    assert expected("abcd", ["abcd", "bc"]) == ("a", "bc")  # complete first
    assert expected("abcd", ["bc", "abc"]) == ("", "abc")  # at once: the one that starts first
    letters = ["a", "b", "c", " ", "😀"]

    def word(most: int) -> str:
        return "".join(rng.choice(letters, rng.integers(1, most)))

    for string, stops in (("<<s", ["<stop>"]), ("xabc", ["abcd", "bce", "c"]), ("aaab", ["aab"])):
        assert_stops(text, characters(text, string), stops)
    for _ in range(300):
        stops = [word(5) for _ in range(rng.integers(1, 4))]
        assert_stops(text, [text.encode(word(5)) for _ in range(rng.integers(1, 6))], stops)


def test_without_stop_strings_nothing_is_held_back(text: Text) -> None:
    for string in TEXTS[:5]:
        tokens = text.encode(string)
        assert stream(text, tokens) == [*(text.decode([token]) for token in tokens), ""]


def test_an_id_beyond_the_tokenizer_has_no_text(text: Text) -> None:
    letter, emoji = text.encode("a"), text.encode("😀")
    assert not text.has_token(2048)
    assert stream(text, [*letter, 2048, 2111, *letter]) == ["a", "", "", "a", ""]
    assert "".join(stream(text, [*emoji[:2], 2048, *emoji[2:]])) == "😀"
    assert text.decode([*letter, 2048, *letter]) == "aa"


def test_a_text_has_at_least_its_fewest_tokens(text: Text, rng: np.random.Generator) -> None:
    drawn = [text.decode(rng.integers(0, 2048, 40).tolist()) for _ in range(100)]
    for string in (*TEXTS, *drawn, "", " " * 999, "▁" * 999, "\n" * 999, "<bos>" * 99):
        assert text.fewest_tokens(string) <= len(text.encode(string))
    longest = max((text.decode([token]) for token in range(2048)), key=len)
    assert text.fewest_tokens(longest * 500) == len(text.encode(longest * 500)) == 500


STRIPS = {"id": 0, "content": "<pad>", "lstrip": True, "rstrip": False, "normalized": False}
SPLIT = {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": None},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": SPLIT},
        {"added_tokens": [STRIPS | {"single_word": False, "special": True}]},
        {"model": {"byte_fallback": False}},
    ],
    ids=str,
)
def test_a_tokenizer_that_may_drop_characters_has_no_fewest_tokens(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    for path in DEMO.glob("*token*"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text())
    for name, value in change.items():
        raw[name] = raw[name] | value if name == "model" else value
    path.write_text(json.dumps(raw))
    assert Text(tmp_path).fewest_tokens("a" * 999) == 0
