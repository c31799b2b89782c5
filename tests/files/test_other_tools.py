"""Checkpoints that mlx-lm and mlx-vlm wrote: they load, draft, and give those tools' own tokens."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_gemma_mtp.convert.verify import verify

from helpers.broken import load_refusal
from helpers.checkpoints import KINDS, PairPaths
from helpers.logits import assert_logits_agree, capped_logits, logits_of_mlx_lm
from helpers.other_tools import MLX_VLM, as_published, convert_with_mlx_lm, load_in_mlx_lm
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.files.weights import load_target

MOE = "26B-A4B"
FORMATS: dict[str, dict[str, Any]] = {
    "whole": {},
    "float16": {"dtype": mx.float16},
    "4 bits": {"bits": 4},
    "8 bits": {"bits": 8},
    "mixed": {"recipe": "mixed_4_6"},
    **{mode: {"mode": mode} for mode in ("mxfp4", "mxfp8", "nvfp4")},
}
CASES = [(MOE, name) for name in FORMATS]
CASES += [(kind, name) for kind in KINDS if kind != MOE for name in ("4 bits", "mixed", "nvfp4")]


def assert_drafts_change_nothing(
    folder: Path, drafter: Path, prompt: list[int], expected: list[int] | None = None
) -> None:
    """The pair drafts, and generates the same as without drafts: these tokens, if given."""
    with load(folder, drafter) as engine:
        plain, drafted = (
            engine.generate(
                prompt,
                SamplingParams(max_tokens=12, temperature=0, num_draft_tokens=k, ignore_eos=True),
            )[0]
            for k in (0, 3)
        )
    assert drafted.stats.drafted > 0
    assert drafted.tokens == plain.tokens
    if expected is not None:
        assert plain.tokens == expected


@pytest.fixture(scope="session")
def sources(pairs: dict[str, PairPaths], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target of each kind, its config as published."""
    folder = tmp_path_factory.mktemp("published")
    for kind, pair in pairs.items():
        as_published(pair.target, folder / kind)
    return folder


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_mlx_lm_wrote_computes_the_same_here(
    kind: str, name: str, sources: Path, pairs: dict[str, PairPaths], tmp_path: Path
) -> None:
    out = convert_with_mlx_lm(sources / kind, tmp_path / "out", **FORMATS[name])
    target = load_target(out, dtype=mx.float32)
    assert_logits_agree(capped_logits(target), logits_of_mlx_lm(load_in_mlx_lm(out)))
    assert [one.faults for one in verify(out)] == [[]]
    if name == "mixed":
        assert_drafts_change_nothing(out, pairs[kind].drafter, [5, 6, 7])


def test_a_global_scale_is_refused_by_name(sources: Path, tmp_path: Path) -> None:
    options = {"mode": "nvfp4", "global_scale": True}
    out = convert_with_mlx_lm(sources / MOE, tmp_path / "out", **options)
    message = load_refusal(out, None)
    assert "global scale" in message
    assert verify(out)[0].faults == [message]


@pytest.mark.parametrize("name", ["mixture-mxfp4", "e2b-mixed_2_6"])
def test_what_mlx_vlm_wrote_gives_its_tokens(name: str) -> None:
    greedy = json.loads((MLX_VLM / name / "greedy.json").read_text())
    params = SamplingParams(max_tokens=12, temperature=0, num_draft_tokens=0, ignore_eos=True)
    with load(MLX_VLM / name, None) as engine:
        assert engine.generate(greedy["prompt"], params)[0].tokens == greedy["tokens"]
    assert not any(one.faults for one in verify(MLX_VLM / name))


def test_a_drafter_with_a_centroid_head_that_mlx_vlm_quantized_drafts() -> None:
    folder = MLX_VLM / "e2b-mixed_2_6"
    greedy = json.loads((folder / "greedy.json").read_text())
    drafter = MLX_VLM / "e2b-mixed_2_6-assistant"
    assert_drafts_change_nothing(folder, drafter, greedy["prompt"], greedy["tokens"])
