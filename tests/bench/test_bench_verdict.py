"""The verdict of hand-made records: it follows from them, and all that is shown agrees with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mlx_gemma_mtp.bench import report
from mlx_gemma_mtp.bench.conclusions import duels, finding, verdict
from mlx_gemma_mtp.bench.record import Case, Record, Spread, by_speed
from mlx_gemma_mtp.bench.tables import SHARED_BATCHES, share_table, summaries

from helpers.bench_records import (
    BARE,
    DRAWN,
    EMPTY,
    PAYS,
    PAYS_NOT,
    PEER,
    STAMP,
    a_case,
    every_record,
    shown,
    spread,
)


def test_a_peer_is_compared_turn_by_turn() -> None:
    def quicker(case: Case) -> Case:
        """The peer's second turn is as quick as its first; ours stays slow there."""
        first, _, last = case.windows
        theirs = (case.engine, case.batch, case.num_draft_tokens) == (PEER, 4, 3)
        return replace(case, windows=[first, first, last]) if theirs else case

    changed = replace(PAYS, cases=[quicker(case) for case in PAYS.cases])
    for record, low in ((PAYS, 1.46), (changed, 1.43)):
        assert [one.ours.batch for one in duels(record)] == [1, 4]
        one = duels(record)[-1]
        assert one.times.median == pytest.approx(by_speed(one.ours) / by_speed(one.theirs))
        assert duels(record)[-1].times.low == pytest.approx(low, abs=0.005)
    assert "4      mlx-vlm  212.8       3  310.9       3  1.46x (1.43–1.46)" in shown(changed)


def speeds(low: float = 0.99, **rates: float) -> Record:
    """Batch 1 with these tokens per second: k0 is plain. low: of each gain, relative to it."""
    cases = []
    for name, rate in rates.items():
        gain = rate / rates.get("k0", 1)
        case = a_case("code", 1, "auto" if name == "auto" else int(name[1:]), rate=0.5, slope=0.0)
        gained = Spread(gain, gain * low, gain)
        cases.append(replace(case, tokens_per_second=spread(rate), speedup=gained))
    return replace(PAYS, cases=cases)


def both(one: Record, other: Record) -> Record:
    """The first at batch 1, the other at batch 2."""
    return replace(one, cases=[*one.cases, *(replace(case, batch=2) for case in other.cases)])


GAINS, LOSES = speeds(k0=50, k3=100, auto=80), speeds(k0=50, k3=45, auto=40)


DRAWN_GAIN = replace(GAINS, plan=DRAWN.plan)
IDLE = replace(LOSES, cases=[replace(case, drafted_per_round=0.0) for case in LOSES.cases])
UNEVEN = speeds(k0=50, k3=60, low=0.8)
SLOWER = "at best 0.90 times as fast, so use --num-draft-tokens 0."


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            speeds(k0=50, k3=100, k5=90, auto=99),
            "Yes at batch 1: 1.98 times as fast with --num-draft-tokens auto, the default.",
        ),
        (GAINS, "Yes at batch 1: 2.00 times as fast with --num-draft-tokens 3."),
        (LOSES, f"No at batch 1: {SLOWER}"),
        (
            speeds(k0=50, auto=51),
            "No at batch 1: at best 1.02 times as fast, so use --num-draft-tokens 0.",
        ),
        (IDLE, "No at batch 1: auto did not draft, so use --num-draft-tokens 0."),
        (
            UNEVEN,
            "Unclear at batch 1: the turns differ too much (0.96x to 1.20x), so use "
            "--num-draft-tokens 0.",
        ),
        (
            both(GAINS, LOSES),
            "Yes at batch 1: 2.00 times as fast with --num-draft-tokens 3. "
            f"No at batch 2: {SLOWER}",
        ),
        (
            both(GAINS, speeds(k0=50, k3=75)),
            "Yes at batch 1 and 2: 2.00 and 1.50 times as fast with --num-draft-tokens 3.",
        ),
        (
            DRAWN_GAIN,
            "Yes at batch 1: 2.00 times as fast with --num-draft-tokens 3. This assumes that "
            "drafts are accepted at 0.8, 0.5 / 0.4 (rows in turn).",
        ),
        (
            speeds(k3=9),
            "Not measured: this needs plain decoding and drafts; type --num-draft-tokens 0,3,auto "
            "to compare.",
        ),
        (BARE, "Not measured: the model has no drafter."),
        (EMPTY, "Not measured: the run ended too early."),
    ],
)
def test_the_verdict_says_by_batch_how_much_faster_and_what_to_type(
    found: Record, said: str
) -> None:
    assert verdict(found) == f"Worth it here? {said}"


def test_a_noisy_fastest_setting_does_not_hide_one_that_gains() -> None:
    noisy = replace(speeds(k3=110, low=0.4).cases[0], speedup=Spread(1.1, 0.9, 2.0))
    steady = speeds(k0=50, k1=75)
    said = verdict(replace(steady, cases=[*steady.cases, noisy]))
    assert said.endswith("Yes at batch 1: 1.50 times as fast with --num-draft-tokens 1.")


def test_a_faster_auto_that_did_not_draft_is_no_gain() -> None:
    plain, auto = speeds(k0=50, auto=60).cases
    idle = replace(auto, drafted_per_round=0.0, acceptance_rate=None, acceptance_length=None)
    found = replace(PAYS, cases=[plain, idle])
    assert verdict(found).startswith("Worth it here? No at batch 1: auto did not draft")
    assert "batch 1: auto did not draft." in shown(found)
    drafted = speeds(k0=50, k3=40).cases[1]
    assert "0.80 times" in verdict(replace(PAYS, cases=[plain, drafted, idle]))


@every_record
@pytest.mark.parametrize("markdown", [False, True])
def test_the_verdict_is_the_first_line_and_the_last(record: Record, markdown: bool) -> None:
    for part in ("short", "all"):
        text = report.text(record, part, markdown=markdown)  # type: ignore[arg-type]
        lines = text.splitlines()
        assert lines[0] == lines[-1] == verdict(record)
    assert report.text(record, "verdict", markdown=markdown).endswith(lines[-1])


@pytest.mark.parametrize(
    "record", [GAINS, LOSES, both(GAINS, LOSES), both(LOSES, GAINS), PAYS, PAYS_NOT]
)
def test_table_verdict_and_shared_row_have_one_answer(record: Record) -> None:
    said, table = verdict(record), summaries(record)[0]
    shared = share_table([record]).rows[0][3:7]
    for batch, cell in zip(SHARED_BATCHES, shared, strict=True):
        one = finding(record.at(batch))
        if one is None:
            continue
        gain, count = f"{one.gain.median:.2f}x", one.use.num_draft_tokens
        (row,) = (row for row in table.rows if row[0] == f"batch {batch}")
        assert (row[2], row[4].split()[0]) == (str(one.drafted.num_draft_tokens), gain)
        assert gain.removesuffix("x") in said
        assert f"--num-draft-tokens {count}" in said
        assert ("→" in cell) == one.gains == (gain in cell) == (count != 0)


def test_without_a_gain_the_reason_is_the_cost_of_a_round() -> None:
    because = "takes 1.95x as long as a plain one and yields 1.60 tokens a row."
    lines = shown(PAYS_NOT, "short", width=200)
    assert f"batch 1: a round with 1 draft {because}" in lines
    for record in (PAYS, UNEVEN):
        assert "yields" not in shown(record)
    assert "On a CPU" not in lines
    on_cpu = replace(PAYS_NOT, stamp=replace(STAMP, backend="cpu"))
    assert "On a CPU" in shown(on_cpu)
    assert "On a CPU" not in shown(replace(PAYS, stamp=on_cpu.stamp))
