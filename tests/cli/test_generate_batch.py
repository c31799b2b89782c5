"""`mgm generate --batch-file`: no result is lost, and none depends on what was done before it."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command import GREEDY, SECONDS, STORY, SUM, Done, Here, assert_plain, found, start
from mlx_gemma_mtp.cli.requests_file import read
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.errors import UsageError

pytestmark = pytest.mark.slow

SHORT = SamplingParams(max_tokens=4)


def batch(here: Here, folder: Path, lines: list[Any], *options: str) -> tuple[Done, list[Any]]:
    """Answer these lines, with options, and return the results, too."""
    source, out = write_lines(folder / "in.jsonl", lines), folder / "out.jsonl"
    done = here("generate", "--batch-file", source, "--out", out, *options)
    return done, read_lines(out)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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


def interrupted(arguments: list[str], kept: Path, count: int, with_signal: signal.Signals) -> Done:
    """A run that gets a signal once it has that many results."""
    with start(["generate", *arguments]) as process:
        deadline = time.monotonic() + SECONDS
        while num_results(kept) < count and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(with_signal)
        return Done(process.args, process.wait(SECONDS), *process.communicate(timeout=SECONDS))


def num_results(kept: Path) -> int:
    return max(0, kept.read_bytes().count(b"\n") - 1) if kept.exists() else 0  # without the header


def test_a_batch_interrupted_twice_has_the_results_of_an_uninterrupted_one(
    mgm_here: Here, tmp_path: Path, rng: np.random.Generator
) -> None:
    here = partial(mgm_here, "generate")
    source = write_lines(tmp_path / "in.jsonl", a_hundred(rng))
    out, kept = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    command = ["--batch-file", str(source), "--out", str(out)]

    options = ["--max-batch", "3", "--num-draft-tokens", "0"]
    done = interrupted([*command, *options], kept, 15, signal.SIGINT)
    assert_plain(done)
    assert (done.returncode, done.stdout) == (130, "")
    before = kept.read_bytes()
    counted = re.search(r"interrupted; (\d+) of 100 results are kept", done.stderr)
    assert counted
    assert num_results(kept) - int(counted[1]) in (0, 1)  # the signal may come before it is counted

    done = interrupted([*command, "--drafter", "none"], kept, 50, signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    assert kept.read_bytes().startswith(before)
    with kept.open("ab") as file:
        file.write(b'{"number": 99, "result": {"id": "torn", "te')  # as after a power failure
    seed = json.loads(kept.read_bytes().partition(b"\n")[0])["seed"]
    assert not out.exists()

    left = 100 - num_results(kept)
    done = here(*command)
    assert_plain(done)
    assert (done.returncode, done.stdout) == (0, "")
    expected = rf"already done: {100 - left} of 100\n{left} answers?, \d+ tokens, "
    assert re.match(expected, done.stderr)
    assert not kept.exists()

    whole = tmp_path / "whole.jsonl"
    done = here(*command[:-1], whole, "--seed", seed, "--drafter", "none")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {source.name, out.name, whole.name}

    asked, results = read_lines(source), read_lines(out)
    ids = [line.get("id", number) for number, line in enumerate(asked, 1)]
    assert [result["id"] for result in results] == ids
    both = list(zip(asked, results, strict=True))
    assert all(len(result["tokens"]) <= line.get("max_tokens", 4) for line, result in both)
    assert {result["finish_reason"] for result in results} == {"stop", "length"}
    assert len({result["seed"] for line, result in both if "seed" not in line}) == 90
    assert all(result["seed"] == 5 for line, result in both if "seed" in line)


def test_a_result_is_that_of_its_prompt_alone(mgm_here: Here, tmp_path: Path) -> None:
    lines = [
        {"id": "b", "prompt": STORY, "max_tokens": 12, "temperature": 2},
        {"id": "c", "prompt": SUM, "thinking": True, "stop": "4", "temperature": 0},
    ]
    as_options = (
        (STORY, "--max-tokens", "12", "--temperature", "2"),
        (SUM, "--think", "--stop", "4", *GREEDY),
    )
    done, results = batch(mgm_here, tmp_path, lines, "--system", "Be nice.")
    assert done.returncode == 0
    for line, result, options in zip(lines, results, as_options, strict=True):
        common = ("--seed", str(result["seed"]), "--system", "Be nice.", "--json")
        alone = found(mgm_here("generate", *options, *common))
        prompt_tokens = alone.pop("stats")["prompt_tokens"]
        del alone["exact"]  # depends on what else is decoded
        assert result == {"id": line["id"], **alone, "prompt_tokens": prompt_tokens}


def test_a_request_that_fails_is_a_line_and_is_retried(mgm_here: Here, tmp_path: Path) -> None:
    prompts = ["Hi", "word " * 5000, "Hi"]
    lines = [{"id": number, "prompt": prompt} for number, prompt in enumerate(prompts, 1)]
    for times in (1, 2):
        done, (one, two, three) = batch(mgm_here, tmp_path, lines, "--max-tokens", "2")
        assert (done.returncode, done.stdout) == (1, "")
        expected = r"\nmgm: 1 of 3 requests failed, the first on line 2 \(.*4095.*\n$"
        assert re.search(expected, done.stderr)
        assert ("already done: 2 of 3" in done.stderr) is (times == 2)
        assert (one["id"], three["id"], len(one["tokens"])) == (1, 3, 2)
        assert (two["id"], {*two}) == (2, {"id", "error"})


def test_at_a_terminal_a_bar_moves(
    mgm_here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    done, _ = batch(mgm_here, tmp_path, [{"prompt": "Hi"}, {"prompt": SUM}])
    assert (done.returncode, done.stdout) == (0, "")
    assert "2/2" in done.stderr
    last = re.sub(r"\x1b\[\d*[A-Z]", "", done.stderr.splitlines()[-1])
    assert re.match(r"2 answers, \d+ tokens, \d+ tokens/s", last)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'"Hi"', "not an object"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (rb'{"prompt": "\ud83d"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": 7}', "must be text or a list"),
        (b'{"prompt": " "}', "empty"),
        (b'{"prompt": []}', "must be text or a list"),
        (b'{"prompt": [1, 2]}', "message 1: it must be an object"),
        (b'{"prompt": [{"role": "usr", "content": "Hi"}]}', "message 1: its role must be one of"),
        (b'{"prompt": "Hi", "promt": 1}', "unknown key 'promt'; known keys: id, "),
        (b'{"prompt": "Hi", "temperature": "hot"}', "temperature must"),
        (b'{"prompt": "Hi", "top_k": 1.5}', "top_k must"),
        (b'{"prompt": "Hi", "stop": [1]}', "stop must"),
        (b'{"prompt": "Hi", "thinking": 1}', "thinking must"),
        (b'{"prompt": "Hi", "system": 1}', "system must be text"),
        (b'{"prompt": "Hi", "id": 1}', "line 1 has the same id"),
        (b'{"prompt": [{"role": "system", "content": "a"}], "system": "b"}', "use one of them"),
    ],
)
def test_a_bad_line_is_named_before_any_work(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": 1, "prompt": "Hi"}\n\n' + line + b"\n{}\n")
    with pytest.raises(UsageError, match=re.escape(f"{path}, line 3: ")) as refused:
        read(path, SHORT, None)
    assert reason in str(refused.value)
    assert str(refused.value).endswith("(also bad: 4)")
    assert "\n" not in str(refused.value)


def test_a_byte_order_mark_is_not_part_of_any_line(tmp_path: Path) -> None:
    path, mark = tmp_path / "in.jsonl", b"\xef\xbb\xbf"
    for head, number in ((mark, 1), (mark + b"\n" + mark, 2)):
        path.write_bytes(head + b'{"prompt": "Hi"}\n')
        [line] = read(path, SHORT, None)[0]
        assert (line.number, line.prompt) == (number, "Hi")


def test_the_system_prompt_of_a_line_replaces_the_one_for_all(tmp_path: Path) -> None:
    user, own = {"role": "user", "content": "Hi"}, {"role": "system", "content": "own"}
    lines = [
        *({"prompt": "Hi"}, {"prompt": [user]}, {"prompt": "Hi", "system": "own"}),
        *({"prompt": [own, user]}, {"prompt": "Hi", "system": ""}),
    ]
    path = write_lines(tmp_path / "in.jsonl", lines)
    general = {"role": "system", "content": "all"}
    prompts = [line.prompt for line in read(path, SHORT, "all")[0]]
    assert prompts == [[general, user], [general, user], [own, user], [own, user], "Hi"]


def test_a_seed_depends_on_the_id_and_not_on_the_place(tmp_path: Path) -> None:
    lines = [{"id": name, "prompt": "Hi"} for name in ("a", "b", 1, 1.5, None)]
    path = tmp_path / "in.jsonl"

    def seeds(lines: list[Any], base: int) -> list[int | None]:
        read_again, _ = read(write_lines(path, lines), SHORT, None)
        return [line.seeded(base).params.seed for line in read_again]

    there = seeds(lines, 1)
    assert there == seeds(lines[::-1], 1)[::-1]
    assert len({*there, *seeds(lines, 2)}) == 10
