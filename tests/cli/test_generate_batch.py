"""`mgm generate --batch-file`: nothing is lost, and nothing depends on what went before."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command import (
    GREEDY,
    STORY,
    SUM,
    Done,
    Here,
    assert_plain,
    found,
    generate_here,  # noqa: F401 - the fixture `here`
    mgm,
)
from mlx_gemma_mtp.cli.requests_file import read
from mlx_gemma_mtp.cli.results_file import ResultsFile
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.errors import MgmError, UsageError

SHORT = SamplingParams(max_tokens=4)


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def a_hundred(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Requests of every form."""
    lines: list[dict[str, Any]] = []
    for number in range(100):
        one, other = (int(some) for some in rng.integers(1, 99, 2))
        line: dict[str, Any] = {"id": f"é {number}", "prompt": "Hi", "max_tokens": 1}
        line |= {"temperature": 3, "top_k": 0}  # the seed decides
        if number % 3 == 0:
            line |= {"prompt": f"What is {one} + {other}?", "max_tokens": int(rng.integers(2, 5))}
        if number % 10 == 1:
            line |= {"id": {"n": [number]}, "prompt": [{"role": "user", "content": "Hi"}]}
        if number % 10 == 2:
            line = {"id": number, "prompt": SUM, "seed": 5, "stop": "+"}
        if number % 20 == 3:
            line |= {"system": "You are terse.", "thinking": True}
            del line["id"]
        lines.append(line)
    return lines


def interrupted(arguments: list[str], count: int, with_signal: signal.Signals) -> Done:
    """A run that gets a signal once so many results are there."""
    before = f"""
import signal
from mlx_gemma_mtp.cli.results_file import ResultsFile
add = ResultsFile.add
def interrupted(self, number, result):
    add(self, number, result)
    if len(self.done) == {count}:
        signal.raise_signal({with_signal:d})
ResultsFile.add = interrupted
"""
    return mgm(["generate", *arguments], before=before)


def test_a_batch_interrupted_twice_gives_the_results_of_one_that_was_not(
    here: Here, tmp_path: Path, rng: np.random.Generator
) -> None:
    source = write_lines(tmp_path / "in.jsonl", a_hundred(rng))
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    command = ["--batch-file", str(source), "--out", str(out)]

    done = interrupted([*command, "--max-batch", "3", "--num-draft-tokens", "0"], 25, signal.SIGINT)
    assert_plain(done)
    assert (done.returncode, done.stdout) == (130, "")
    kept = partial.read_bytes()
    assert kept.count(b"\n") == 1 + 25
    assert "25 of 100 results are kept" in done.stderr

    done = interrupted([*command, "--drafter", "none"], 60, signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    assert partial.read_bytes().startswith(kept)
    with partial.open("ab") as file:
        file.write(b'99\t{"id": "torn", "te')  # as a machine that lost its power leaves it
    seed = json.loads(partial.read_bytes().partition(b"\n")[0])["seed"]
    assert not out.exists()

    done = here(*command)
    assert_plain(done)
    assert (done.returncode, done.stdout) == (0, "")
    assert re.match(r"60 results are there already\n40 texts, \d+ tokens, ", done.stderr)
    assert not partial.exists()

    whole = tmp_path / "whole.jsonl"
    done = here(*command[:-1], whole, "--seed", seed, "--drafter", "none")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "out.jsonl",
        "whole.jsonl",
    ]

    asked = [json.loads(line) for line in source.read_text().splitlines()]
    results = [json.loads(line) for line in out.read_text().splitlines()]
    ids = [line.get("id", number) for number, line in enumerate(asked, 1)]
    assert [result["id"] for result in results] == ids
    for line, result in zip(asked, results, strict=True):
        assert len(result["tokens"]) <= line.get("max_tokens", 4)
    assert {result["finish_reason"] for result in results} == {"stop", "length"}
    seeds = {r["seed"] for a, r in zip(asked, results, strict=True) if "seed" not in a}
    assert len(seeds) == 90
    assert all(r["seed"] == 5 for a, r in zip(asked, results, strict=True) if "seed" in a)


def test_a_result_is_what_its_prompt_alone_gives(here: Here, tmp_path: Path) -> None:
    lines = [
        {"id": "b", "prompt": STORY, "max_tokens": 12, "temperature": 2},
        {"id": "c", "prompt": SUM, "thinking": True, "stop": "4", "temperature": 0},
    ]
    as_options = (
        (STORY, "--max-tokens", "12", "--temperature", "2"),
        (SUM, "--think", "--stop", "4", *GREEDY),
    )
    source, out = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert here("--batch-file", source, "--out", out, "--system", "Be nice.").returncode == 0
    results = [json.loads(line) for line in out.read_text().splitlines()]
    for line, result, options in zip(lines, results, as_options, strict=True):
        seed = str(result["seed"])
        alone = found(here(*options, "--seed", seed, "--system", "Be nice.", "--json"))
        prompt_tokens = alone.pop("stats")["prompt_tokens"]
        assert result == {"id": line["id"], **alone, "prompt_tokens": prompt_tokens}


def test_a_request_that_fails_is_a_line_and_is_tried_again(here: Here, tmp_path: Path) -> None:
    lines = [
        {"id": 1, "prompt": "Hi"},
        {"id": 2, "prompt": "word " * 5000},
        {"id": 3, "prompt": "Hi"},
    ]
    source, out = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    command = ("--batch-file", source, "--out", out, "--max-tokens", "2", "--seed", "1")
    for times in (1, 2):
        done = here(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.search(
            r"\nmgm: 1 of 3 requests failed, the first on line 2 \(.*4096.*\n$", done.stderr
        )
        assert ("2 results are there already" in done.stderr) is (times == 2)
        one, two, three = (json.loads(line) for line in out.read_text().splitlines())
        assert (one["id"], three["id"], len(one["tokens"])) == (1, 3, 2)
        assert (two["id"], {*two}) == (2, {"id", "error"})


def test_at_a_terminal_a_bar_moves(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "Hi"}, {"prompt": SUM}])
    done = here("--batch-file", source, "--out", tmp_path / "out.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert "2/2" in done.stderr
    last = re.sub(r"\x1b\[\d*[A-Z]", "", done.stderr.splitlines()[-1])
    assert re.match(r"2 texts, \d+ tokens, \d+ tokens/s", last)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'"Hi"', "not an object"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (rb'{"prompt": "\ud83d"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": 7}', "neither text nor a list"),
        (b'{"prompt": " "}', "empty"),
        (b'{"prompt": []}', "neither text nor a list"),
        (b'{"prompt": [1, 2]}', "message 1: it is not an object"),
        (b'{"prompt": [{"role": "usr", "content": "Hi"}]}', "message 1: its role is 'usr'"),
        (b'{"prompt": "Hi", "promt": 1}', "'promt'"),
        (b'{"prompt": "Hi", "temperature": "hot"}', "temperature must"),
        (b'{"prompt": "Hi", "top_k": 1.5}', "top_k must"),
        (b'{"prompt": "Hi", "stop": [1]}', "stop must"),
        (b'{"prompt": "Hi", "thinking": 1}', "thinking must"),
        (b'{"prompt": "Hi", "system": 1}', "system is not text"),
        (b'{"prompt": "Hi", "id": 1}', "that of line 1"),
        (b'{"prompt": [{"role": "system", "content": "a"}], "system": "b"}', "begin with one"),
    ],
)
def test_a_bad_line_is_named_before_any_work(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": 1, "prompt": "Hi"}\n\n' + line + b"\n{}\n")
    with pytest.raises(UsageError, match=re.escape(f"{path}, line 3: ")) as refused:
        read(path, SHORT, None)
    assert reason in str(refused.value)
    assert str(refused.value).endswith("(1 more bad lines: 4)")
    assert "\n" not in str(refused.value)


def test_a_system_turn_for_all_yields_to_a_line_that_has_its_own(tmp_path: Path) -> None:
    user, own = {"role": "user", "content": "Hi"}, {"role": "system", "content": "own"}
    lines = [
        {"prompt": "Hi"},
        {"prompt": [user]},
        {"prompt": "Hi", "system": "own"},
        {"prompt": [own, user]},
        {"prompt": "Hi", "system": ""},
    ]
    path = write_lines(tmp_path / "in.jsonl", lines)
    general = {"role": "system", "content": "all"}
    prompts = [line.prompt for line in read(path, SHORT, "all").lines]
    assert prompts == [[general, user], [general, user], [own, user], [own, user], "Hi"]


def test_a_seed_depends_on_the_id_and_not_on_the_place(tmp_path: Path) -> None:
    lines = [{"id": name, "prompt": "Hi"} for name in ("a", "b", 1, 1.5, None)]
    path = tmp_path / "in.jsonl"
    there = [line.seeded(1) for line in read(write_lines(path, lines), SHORT, None).lines]
    back = [line.seeded(1) for line in read(write_lines(path, lines[::-1]), SHORT, None).lines]
    other = [line.seeded(2) for line in read(path, SHORT, None).lines]
    seeds = [line.params.seed for line in there]
    assert seeds == [line.params.seed for line in back][::-1]
    assert len({*seeds, *(line.params.seed for line in other)}) == 10


# What is kept of results


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def begin(out: Path, about: str = "this", seed: int = 1, restart: bool = False) -> ResultsFile:
    return ResultsFile(out, {"about": about}, seed, restart=restart)


def test_results_are_kept_and_published_in_order(out: Path) -> None:
    first = begin(out)
    first.add(3, {"text": "c"})
    first.add(1, {"text": "é😀\n"})
    first.close()
    second = begin(out, seed=2)
    assert (second.seed, second.done) == (1, {1, 3})
    second.publish({2: {"error": "failed"}})
    assert second.path.exists()
    second.add(2, {"text": "b"})
    second.publish({})
    second.close()
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"text": "é😀\n"},
        {"text": "b"},
        {"text": "c"},
    ]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("cut", range(1, 17))
def test_a_result_that_was_cut_off_anywhere_is_dropped(out: Path, cut: int) -> None:
    first = begin(out)
    first.add(1, {"text": "a"})
    first.add(2, {"text": "b"})  # 16 bytes
    first.close()
    first.path.write_bytes(first.path.read_bytes()[:-cut])
    second = begin(out)
    assert second.done == {1}
    second.add(2, {"text": "other"})
    second.publish({})
    second.close()
    assert out.read_text() == '{"text": "a"}\n{"text": "other"}\n'


def test_what_was_begun_otherwise_is_refused_unless_it_is_begun_anew(out: Path) -> None:
    begin(out, "this").close()  # nothing is in it
    first = begin(out, "that")
    first.add(1, {})
    with pytest.raises(UsageError, match="open in another mgm"):
        begin(out, "that")
    first.close()
    with pytest.raises(UsageError, match=r"started with different about: .*--restart"):
        begin(out, "this")
    for about in ("that", "this"):
        anew = begin(out, about, restart=True)
        assert anew.done == frozenset()
        anew.close()
        assert not anew.path.exists()


def test_a_restart_that_was_stopped_goes_on_and_replaces_what_it_was_to_replace(out: Path) -> None:
    out.write_text("before")
    first = begin(out, restart=True)
    first.add(1, {})
    first.close()
    second = begin(out)
    assert second.done == {1}
    second.publish({})
    second.close()
    assert out.read_text() == "{}\n"


def test_what_somebody_else_wrote_is_left_alone(out: Path) -> None:
    for name, content in ((out.name, "mine"), (f"{out.name}.partial", "mine")):
        path = out.with_name(name)
        path.write_text(content)
        with pytest.raises(UsageError, match="--restart"):
            begin(out)
        assert path.read_text() == content
        assert [*out.parent.iterdir()] == [path]
        path.unlink()


def test_a_full_disk_is_one_line_and_keeps_what_is_there(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.write_text("before")
    first = begin(out, restart=True)
    first.add(1, {"text": "a"})

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(MgmError, match="No space left"):
            first.add(2, {"text": "b"})
        patch.setattr(os, "fsync", full)
        with pytest.raises(MgmError, match="No space left"):
            first.publish({})
    first.close()
    assert {path.name for path in out.parent.iterdir()} == {out.name, first.path.name}
    assert out.read_text() == "before"
    assert begin(out).done == {1}
