"""Memory: the need, compared with what MLX measures; what is available; what is refused."""

from __future__ import annotations

import gc
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from helpers import checkpoints
from helpers.checkpoints import PairPaths, make_pair
from helpers.command import Here, assert_one_line
from helpers.held import held
from mlx_gemma_mtp import SamplingParams, device, load, memory
from mlx_gemma_mtp.device import available, mac_limit
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import NotEnoughMemoryError, UsageError
from mlx_gemma_mtp.files import weights
from mlx_gemma_mtp.files.checkpoint import read_config, read_target_config
from mlx_gemma_mtp.files.names import DEMO, DEMO_DRAFTER
from mlx_gemma_mtp.files.published import SIZES, best_fit
from mlx_gemma_mtp.files.weights import num_bytes
from mlx_gemma_mtp.memory import Limits, read_pair
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

DEMO = PairPaths(DEMO, DEMO_DRAFTER)
# Part of tiny models' peaks: small buffers that come and go while MLX's host runs ahead.
SLACK = 500_000  # bytes

NEW_TOKENS = 8
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, num_draft_tokens=3, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=1, top_k=64, top_p=0.95, seed=1, num_draft_tokens=15)
CONTROLLED = replace(  # sorts the whole vocabulary
    SAMPLED, top_k=0, repetition_penalty=1.1, logit_bias={5: 1.0}, min_p=0.1, logprobs=20
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, seed: int) -> dict[str, PairPaths]:
    """Pairs that use memory in different ways: PLE and shared keys, experts, a large vocabulary."""
    folder = tmp_path_factory.mktemp("memory")
    made = {kind: make_pair(kind, folder / kind, seed) for kind in ("E2B", "26B-A4B", "31B")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(checkpoints.COMMON, "vocab_size", 16_384)
        made["wide"] = make_pair("12B", folder / "wide", seed)
    return made | {"demo": DEMO}


def peak_of(work: Callable[[], object]) -> int:
    """Return MLX's peak while this runs, minus what was held before."""
    gc.collect()  # memory of earlier tests, freed meanwhile, would hide new memory
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
        ("26B-A4B", 80, 4, SAMPLED),
        ("26B-A4B", 300, 2, GREEDY),
        ("31B", 130, 4, GREEDY),
        ("31B", 700, 1, GREEDY),
        ("wide", 40, 2, CONTROLLED),
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
    rng: np.random.Generator,
) -> None:
    # As on a quick machine: on a slow one chunks are smaller while rows decode.
    limits = Limits(pause_seconds=math.inf)
    paths = tiny[kind]
    need = read_pair(*paths).needs(context, batch)

    def work() -> None:
        with Engine(open_pair(*paths), max_batch=batch, limits=limits) as running:
            size = context - NEW_TOKENS
            prompts = [
                rng.integers(3, running.config.vocab_size, size).tolist()
                for _ in range(batch + (batch > 1))  # the last joins as the first leaves
            ]
            with held():  # otherwise the first could be read before the second is there, alone
                under_way = [running.submit(prompt, params) for prompt in prompts]
            for generation in under_way:
                generation.result()

    peak = peak_of(work)
    assert need == pytest.approx(peak, rel=0.1, abs=SLACK), f"{need / peak:.2f} of {peak}"


def test_kept_sessions_are_counted(tiny: dict[str, PairPaths], rng: np.random.Generator) -> None:
    paths, limits = tiny["E2B"], Limits(pause_seconds=math.inf)
    need = read_pair(*paths).needs(1024, 1, sessions=2)

    def work() -> None:
        with Engine(open_pair(*paths), max_batch=1, limits=limits) as running:
            kept = [running.session() for _ in range(2)]
            for session in kept:
                ids: list[int] = []
                for more in (40, 1024 - 40 - 2 * NEW_TOKENS):
                    ids += rng.integers(3, running.config.vocab_size, more).tolist()
                    generation = running.submit(ids, GREEDY, session=session)
                    ids += generation.result().tokens

    assert need == pytest.approx(peak_of(work), rel=0.1, abs=SLACK)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_weights_are_counted_without_being_read(pair: PairPaths, bits: int | None) -> None:
    config, dtype = read_target_config(pair.target), weights.default_dtype()
    load_drafter = partial(weights.load_drafter, target=config)
    open_drafter = partial(weights.open_drafter, target=config)
    for folder, load_it, open_it in (
        (pair.target, weights.load_target, weights.open_target),
        (pair.drafter, load_drafter, open_drafter),
    ):
        opened = open_it(folder, bits=bits, dtype=dtype)
        loading = weights.loading_bytes(opened, folder)
        read = partial(load_it, folder, bits=bits)
        model: list[Target | Drafter] = []
        peak = peak_of(lambda: model.append(mlx_worker().run(read)))  # noqa: B023 - used at once
        assert num_bytes(opened) == num_bytes(model[0])
        # A bound: timing decides which of the tiny tensors are held at once.
        assert peak / 1.1 < loading < peak * 1.5


def test_a_quantized_checkpoint_is_counted_as_it_will_be_typed(
    tiny: dict[str, PairPaths], tmp_path: Path
) -> None:
    quantized = weights.load_target(tiny["E2B"].target, bits=4, dtype=mx.bfloat16)
    arrays = {
        f"language_model.model.{name}": array
        for name, array in tree_flatten(quantized.parameters())
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    config = read_config(tiny["E2B"].target)
    # The common entry, and every module that keeps 8 bits by name.
    own = {
        name.removesuffix(".scales"): {"group_size": 64, "bits": 8}
        for name in arrays
        if name.removesuffix(".scales").endswith(weights.EIGHT_BIT)
    }
    config["quantization"] = {"group_size": 64, "bits": 4, **own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for dtype in (None, mx.bfloat16):  # by default float32 on the CPU, otherwise as stored
        opened = weights.open_target(tmp_path, dtype=dtype or weights.default_dtype())
        assert num_bytes(opened) == num_bytes(weights.load_target(tmp_path, dtype=dtype))


def test_the_limits_of_macs_are_the_logged_ones() -> None:
    for gigabytes, logged in ((16, 10922.67), (32, 21845.34), (64, 49152.0), (96, 73728.0)):
        assert mac_limit(gigabytes) / 2**20 == pytest.approx(logged, abs=0.01)


def test_memory_that_mlx_holds_counts_as_available(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000 kB\nMemAvailable:    9000 kB\nBuffers: 1 kB\n")
    mx.clear_cache()  # the array must not come from it
    held = mx.get_active_memory() + mx.get_cache_memory()
    assert available(meminfo) == 9000 * 1024 + held
    array = mx.zeros((1024, 1000))  # 4000 KiB
    mx.eval(array)
    meminfo.write_text("MemAvailable:    5000 kB\n")  # as it would be then
    assert available(meminfo) == pytest.approx(9000 * 1024 + held, abs=20_000)


@pytest.mark.parametrize(("on_metal", "expected"), [(True, 11), (False, 22)])
def test_a_gpu_reports_its_own_memory(
    monkeypatch: pytest.MonkeyPatch, on_metal: bool, expected: int
) -> None:
    info = {"max_recommended_working_set_size": 11, "memory_size": 16, "total_memory": 22}
    wired: list[int] = []
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda _=None: info)
    monkeypatch.setattr(mx.metal, "is_available", lambda: on_metal)
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    assert available() == expected
    device.keep_resident()
    assert wired == ([11] if on_metal else [])


def test_the_longest_context_just_fits() -> None:
    pair = read_pair(*DEMO)
    longest, maximum = partial(pair.longest_context, batch=2), pair.target.max_position_embeddings
    have = pair.needs(1000, 2)
    found = longest(have=have)
    assert 1000 <= found < maximum
    assert pair.needs(found, 2) <= have < pair.needs(found + 1, 2)
    assert 0 < longest(have=have, sessions=2) < found
    assert longest(have=10**12) == maximum
    assert longest(have=pair.target_bytes) == 0
    assert pair.needs(10**9, 2) == pair.needs(maximum, 2)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the system report that this process may hold this many more bytes, or up to 1 kB more."""
    read, info = Path.read_text, mx.device_info()

    def leave(size: int) -> None:
        total = mx.get_active_memory() + size

        def read_text(path: Path, *arguments: Any, **options: Any) -> str:
            if path == device.MEMINFO:
                return f"MemAvailable: {(total - mx.get_active_memory()) // 1024 + 1} kB\n"
            return read(path, *arguments, **options)

        limits = dict.fromkeys(("max_recommended_working_set_size", "total_memory"), total)
        monkeypatch.setattr(Path, "read_text", read_text)
        monkeypatch.setattr(mx, "get_cache_memory", lambda: 0)
        monkeypatch.setattr(mx, "device_info", lambda *_: info | limits)

    return leave


def refusal(model: str | Path, **options: Any) -> str:
    """Return the message that refuses to load a model, before any weights are read."""
    messages = []

    def work() -> None:
        with pytest.raises(NotEnoughMemoryError) as refused:
            load(model, **options)
        messages.append(str(refused.value))

    assert peak_of(work) < SLACK
    return messages[0]


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(
    room: Callable[[int], None],
) -> None:
    fits = read_pair(*DEMO, bits=4)
    room(fits.needs(memory.LOAD_CONTEXT, 1))
    message = refusal("demo")
    need = read_pair(*DEMO).needs(memory.LOAD_CONTEXT, 1)
    assert message.startswith("demo, with 2,048 tokens of context, needs ")
    assert f"needs {need / 1e6:.1f} MB of memory, but " in message
    assert re.search(r"available: bits=4 \(.* would fit", message)
    assert "bits=8" not in message
    assert "--force" in message
    with pytest.raises(UsageError, match="bits must be 4 or 8"):  # reported before memory
        load("demo", bits=5)
    load("demo", bits=4).close()
    load("demo", force=True).close()


def test_loading_itself_must_fit(room: Callable[[int], None], tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO.target, tmp_path / "short")
    config = read_config(folder)
    config["max_position_embeddings"] = 1
    config.get("text_config", {})["max_position_embeddings"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    pair = read_pair(folder, None, bits=4)  # from bfloat16, through float32 on the CPU
    assert pair.loading > 1.2 * pair.needs(1, 1)
    room(pair.loading - 2048)
    assert "the output of `mgm convert --bits 4`" in refusal(folder, bits=4)


def test_memory_of_other_engines_is_not_available(room: Callable[[int], None]) -> None:
    room(read_pair(*DEMO).needs(memory.LOAD_CONTEXT, 1))
    with load("demo"):
        refusal("demo")
    load("demo").close()


def test_the_command_exits_with_4_and_can_be_forced(
    room: Callable[[int], None], mgm_here: Here
) -> None:
    room(1_000_000)
    arguments = ["generate", "What is 2 + 2?"]
    assert_one_line(mgm_here(*arguments), 4, "--force")
    done = mgm_here(*arguments, "--force")
    assert done.returncode == 0
    assert done.stdout.strip()


def test_the_way_out_of_too_little_memory_is_what_fits_or_else_a_smaller_model() -> None:
    ways = (("bits=8", 90), ("bits=4", 50), ("nothing", 49))
    with pytest.raises(NotEnoughMemoryError, match=r"bits=4 \(50 bytes\) or nothing .* would fit"):
        memory.check(100, 60, "this", ways=ways)
    with pytest.raises(NotEnoughMemoryError, match="available: take that one; force it"):
        memory.check(100, 10, "this", ways=ways, instead="take that one", despite="force it")


# The README's table: what to type on each Mac.

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_names_the_best_model_for_each_mac() -> None:
    rows = []
    for macs in ("8 GB", "16 GB", "24 GB or 32 GB", "36 GB or more"):
        size, bits = best_fit(mac_limit(int(macs.split()[0])))
        assert all(
            best_fit(mac_limit(int(mac))) == (size, bits) for mac in re.findall(r"\d+", macs)
        )
        what, needs = f"{size.kind}, {bits} bits", f"{size.needs(bits) / 1e9:.1f} GB"
        rows.append(f"| {macs} | `mgm run {size.short}` | {what} | {needs} |")
    written = re.findall(r"^\| \d+ GB.*", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert written == rows


def test_31b_fits_from_32_gb_on() -> None:
    needs = next(size for size in SIZES if size.kind == "31B").needs(4)
    assert mac_limit(24) < needs <= mac_limit(32)
