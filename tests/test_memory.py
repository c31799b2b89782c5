"""What memory is needed, against what MLX measures; what there is; and who is refused."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_gemma_mtp.bench import synthetic

from helpers import checkpoints
from helpers.checkpoints import PairPaths, make_pair
from helpers.command import assert_one_line, run_here
from mlx_gemma_mtp import SamplingParams, device, load, memory
from mlx_gemma_mtp.device import available, mac_limit
from mlx_gemma_mtp.engine import engine, prefill
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import NotEnoughMemoryError
from mlx_gemma_mtp.files import checkpoint as weights
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.memory import Pair, read_pair
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

DEMO = PairPaths(hub.DEMO, hub.DEMO_DRAFTER)
# Of tiny models' peaks, all of it small buffers that come and go while MLX's host runs ahead.
SLACK = 500_000  # bytes

NEW_TOKENS = 8
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, num_draft_tokens=3, ignore_eos=True)
SAMPLED = SamplingParams(
    max_tokens=NEW_TOKENS,
    temperature=1,
    top_k=64,
    top_p=0.95,
    seed=1,
    num_draft_tokens=8,
    ignore_eos=True,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, seed: int) -> dict[str, PairPaths]:
    """Pairs that take memory each in its own way: PLE and shared keys, experts, many tokens."""
    folder = tmp_path_factory.mktemp("memory")
    made = {kind: make_pair(kind, folder / kind, seed) for kind in ("E2B", "26B-A4B", "31B")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(checkpoints.COMMON, "vocab_size", 16_384)
        made["wide"] = make_pair("12B", folder / "wide", seed)
    return made | {"demo": DEMO}


def peak_of(work: Callable[[], object]) -> int:
    """MLX's peak while this runs, above what was held before."""
    gc.collect()  # else what earlier tests left may go meanwhile, and hide what is new
    mlx_worker().run(mx.clear_cache)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    work()
    return mx.get_peak_memory() - before


@pytest.mark.parametrize(
    ("kind", "context", "batch", "params"),
    [
        ("E2B", 40, 1, GREEDY),
        ("E2B", 300, 2, GREEDY),
        ("E2B", 1024, 1, GREEDY),
        ("26B-A4B", 40, 4, SAMPLED),
        ("26B-A4B", 300, 2, GREEDY),
        ("31B", 130, 4, GREEDY),
        ("31B", 700, 1, GREEDY),
        ("wide", 40, 2, SAMPLED),
        ("demo", 24, 2, SAMPLED),
        ("demo", 300, 1, GREEDY),
    ],
)
def test_the_peak_is_as_estimated(
    tiny: dict[str, PairPaths],
    kind: str,
    context: int,
    batch: int,
    params: SamplingParams,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    # As on a quick machine: else chunks are smaller while rows decode, and less is needed.
    monkeypatch.setattr(prefill, "PAUSE_SECONDS", math.inf)
    paths = tiny[kind]
    need = read_pair(*paths).needs(context, batch).total

    def work() -> None:
        with load(paths.target, paths.drafter, max_batch=batch) as running:
            size = context - NEW_TOKENS
            prompts = [
                rng.integers(3, running.config.vocab_size, size).tolist()
                for _ in range(batch + (batch > 1))  # the last joins as the first leaves
            ]
            running.generate(prompts, params)

    peak = peak_of(work)
    assert need == pytest.approx(peak, rel=0.1, abs=SLACK), f"{need / peak:.2f} of {peak}"


def test_kept_conversations_are_counted(
    tiny: dict[str, PairPaths], rng: np.random.Generator
) -> None:
    paths = tiny["E2B"]
    pair = read_pair(*paths)
    need = pair.needs(1024, 1, sessions=2).total

    def work() -> None:
        with load(*paths, max_batch=1) as running:
            kept = [running.session() for _ in range(2)]
            for session in kept:
                said: list[int] = []
                for more in (40, 1024 - 40 - 2 * NEW_TOKENS):
                    said += rng.integers(3, running.config.vocab_size, more).tolist()
                    generation = running.submit(said, GREEDY, session=session)
                    said += generation.result().tokens

    assert need == pytest.approx(peak_of(work), rel=0.1, abs=SLACK)


def test_only_full_layers_grow_with_the_text() -> None:
    pair = read_pair(*DEMO)
    short, long = pair.needs(512, 4), pair.needs(4096, 4)
    assert short.sliding == long.sliding
    assert long.full > 5 * short.full
    assert pair.needs(10**9, 4) == long  # what the model does not take is not counted


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_weights_are_counted_without_being_read(pair: PairPaths, bits: int | None) -> None:
    config = TargetConfig.from_dict(weights.read_config(pair.target))
    for folder, read in (
        (pair.target, lambda: weights.load_target(pair.target, bits=bits)),
        (pair.drafter, lambda: weights.load_drafter(pair.drafter, config, bits=bits)),
    ):
        model: list[Target | Drafter] = []
        peak = peak_of(lambda: model.append(mlx_worker().run(read)))  # noqa: B023 - used at once
        size = memory.checkpoint_size(folder, bits=bits)
        assert size.loaded == nbytes(model[0])
        # A bound: it depends on timing which of the tiny tensors are there at once.
        assert peak / 1.1 < size.loading < peak * 1.5


def test_a_quantized_checkpoint_is_counted_as_it_will_be_typed(
    tiny: dict[str, PairPaths], tmp_path: Path
) -> None:
    quantized = weights.load_target(tiny["E2B"].target, bits=4, dtype=mx.bfloat16)
    arrays = {
        f"language_model.model.{name}": array
        for name, array in tree_flatten(quantized.parameters())
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    config = weights.read_config(tiny["E2B"].target)
    # Every module that keeps 8 bits is named; the rest follows the common entry.
    own = {
        name.removesuffix(".scales"): {"group_size": 64, "bits": 8}
        for name in arrays
        if name.removesuffix(".scales").endswith(weights.EIGHT_BIT)
    }
    config["quantization"] = {"group_size": 64, "bits": 4, **own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for dtype in (None, mx.bfloat16):  # scales and biases in float32 on the CPU, else as stored
        expected = nbytes(weights.load_target(tmp_path, dtype=dtype))
        assert memory.checkpoint_size(tmp_path, dtype=dtype).loaded == expected


def nbytes(model: Target | Drafter) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


# What there is


@pytest.mark.parametrize(
    ("gigabytes", "logged"), [(16, 10922.67), (32, 21845.34), (64, 49152.0), (96, 73728.0)]
)
def test_macs_give_the_gpu_what_was_logged(gigabytes: int, logged: float) -> None:
    assert mac_limit(gigabytes) / 2**20 == pytest.approx(logged, abs=0.01)


def test_what_mlx_holds_already_counts_as_available(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("asks for the memory of a CPU")
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    meminfo.write_text("MemTotal:       16000 kB\nMemAvailable:    9000 kB\nBuffers: 1 kB\n")
    mx.clear_cache()  # the array may not come out of it
    held = mx.get_active_memory() + mx.get_cache_memory()
    assert available() == 9000 * 1024 + held
    array = mx.zeros((1024, 1000))  # 4000 KiB
    mx.eval(array)
    meminfo.write_text("MemAvailable:    5000 kB\n")  # as it would be then
    assert available() == pytest.approx(9000 * 1024 + held, abs=20_000)


@pytest.mark.parametrize(("on_metal", "expected"), [(True, 11), (False, 22)])
def test_a_gpu_says_itself_what_there_is(
    monkeypatch: pytest.MonkeyPatch, on_metal: bool, expected: int
) -> None:
    told = {"max_recommended_working_set_size": 11, "memory_size": 16, "total_memory": 22}
    wired: list[int] = []
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda _=None: told)
    monkeypatch.setattr(mx.metal, "is_available", lambda: on_metal)
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    assert available() == expected
    device.keep_resident()
    assert wired == ([11] if on_metal else [])


def test_the_longest_context_just_fits() -> None:
    pair = read_pair(*DEMO)

    def longest(have: int, sessions: int = 0) -> int:
        return pair.longest_context(batch=2, have=have, sessions=sessions)

    have = pair.needs(1000, 2).total
    found = longest(have)
    assert 1000 <= found < pair.target.max_position_embeddings
    assert pair.needs(found, 2).total <= have < pair.needs(found + 1, 2).total
    assert 0 < longest(have, sessions=2) < found
    assert longest(10**12) == pair.target.max_position_embeddings
    assert longest(pair.target_bytes) == 0


# Who is refused


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have so many bytes be left for what is to be loaded."""

    def leave(size: int) -> None:
        monkeypatch.setattr(device, "available", lambda: size + mx.get_active_memory())

    return leave


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read of any model's weights."""
    read: list[str] = []
    for name in ("load_target", "load_drafter"):
        original = getattr(weights, name)

        def spied(*args: Any, name: str = name, original: Any = original, **more: Any) -> Any:
            read.append(name)
            return original(*args, **more)

        monkeypatch.setattr(weights, name, spied)
    return read


def test_what_does_not_fit_is_not_read(room: Callable[[int], None], unread: list[str]) -> None:
    fits = read_pair(*DEMO, bits=4)
    room(fits.needs(memory.LOAD_CONTEXT, 1).total)
    with pytest.raises(NotEnoughMemoryError) as refused:
        load("demo")
    said = str(refused.value)
    need = read_pair(*DEMO).needs(memory.LOAD_CONTEXT, 1).total
    assert said.startswith("demo, with one text of 2,048 tokens, needs ")
    assert f"needs {need / 1e6:.1f} MB of memory, of which there are " in said
    assert "what fits is bits=4 (" in said
    assert "bits=8" not in said
    assert "--force" in said
    assert not unread
    load("demo", bits=4).close()
    load("demo", force=True).close()
    assert unread == ["load_target", "load_drafter"] * 2


def test_loading_itself_must_fit(
    room: Callable[[int], None], unread: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LOAD_CONTEXT", 1)
    pair = read_pair(*DEMO, bits=4)  # from bfloat16, by way of float32 on the CPU
    assert pair.loading > 1.5 * pair.needs(1, 1).total
    room(pair.loading - 1)
    with pytest.raises(NotEnoughMemoryError, match="what `mgm convert --bits 4` makes of it"):
        load("demo", bits=4)
    assert not unread


def test_other_engines_keep_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    need = read_pair(*DEMO).needs(memory.LOAD_CONTEXT, 1).total
    monkeypatch.setattr(device, "available", lambda: held + need)
    held = mx.get_active_memory()
    with load("demo"), pytest.raises(NotEnoughMemoryError):
        load("demo")
    load("demo").close()


def test_a_setting_that_is_wrong_is_said_before_memory(room: Callable[[int], None]) -> None:
    room(0)
    with pytest.raises(engine.UsageError, match="bits must be 4 or 8"):
        load("demo", bits=5)


def test_the_command_leaves_with_4_and_can_be_forced(
    room: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    room(1_000_000)
    arguments = ["generate", "What is 2 + 2?"]
    assert_one_line(run_here(monkeypatch, capfd, arguments), 4, "--force")
    done = run_here(monkeypatch, capfd, [*arguments, "--force"])
    assert done.returncode == 0
    assert done.stdout.strip()


# The table in the README: what the published sizes need on a Mac, in GB at the peak, and in
# brackets the smallest Mac that has so much for its GPU.

README = Path(__file__).parents[1] / "README.md"
SETTINGS = [(4096, 1), (32_768, 1), (131_072, 1), (4096, 8)]


def test_the_readme_has_the_table_of_the_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ALL_EXPERTS_FROM", None)  # as on a Mac
    head = ["", "weights", "4k", "32k", "128k", "8 texts of 4k"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for size in synthetic.SIZES:
        for label, bits in (("bf16", None), ("8 bits", 8), ("4 bits", 4)):
            pair = Pair.of(*synthetic.random_pair(size, bits=bits))
            cells = [f"{size} {label}", f"{(pair.target_bytes + pair.drafter_bytes) / 1e9:.1f}"]
            for context, batch in SETTINGS:
                total = pair.needs(context, batch).total
                fits = [mac for mac in device.MAC_SIZES if mac_limit(mac) >= total]
                cells.append(f"{total / 1e9:.1f} ({min(fits)})")
            lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    assert table in README.read_text(encoding="utf-8"), f"to be put into the README:\n{table}"
