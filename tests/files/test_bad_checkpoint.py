"""A folder or a config.json that is no usable model is refused in one line that says why."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.broken import Edit, each, load_refusal, put, refusal, refused_or_fine, set_values
from helpers.checkpoints import VOCAB, PairPaths
from mlx_gemma_mtp import SamplingParams, load
from mlx_gemma_mtp.errors import CheckpointError, MgmError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.files.checkpoint import read_config, read_generation_config
from mlx_gemma_mtp.files.hub import DEMO

NOT_A_MODEL: dict[type[MgmError], list[Any]] = {
    ModelNotFoundError: [
        *("/no/such/folder", "./no-such-folder", Path("no-such-folder"), "no-such-model"),
        *(Path("demo"), DEMO / "config.json", "", " ", "a/b/c", "a--b/c", "--help/x", "ünï/cödé"),
        *("~nosuchuser/x", "x" * 5000, "x/" + "y" * 5000, "a\nb", "a\0b"),
    ],
    CheckpointError: ["/"],
    UsageError: [5, b"demo", ["demo"], False],
}


@each(NOT_A_MODEL)
def test_a_wrong_name_of_a_model_or_a_drafter_is_refused(name: type[MgmError], value: Any) -> None:
    refusal(name, lambda: load(value))
    refusal(name, lambda: load("demo", value))


WRONG_OPTIONS: dict[str, list[Any]] = {
    "model": [None],
    "bits": [3, 0, -4, 16, 4.0, "4", True, [4]],
    "max_batch": [0, -1, 9, 1.5, "8", True, None],
}


@each(WRONG_OPTIONS)
def test_a_wrong_option_is_refused_by_name(name: str, value: Any) -> None:
    assert name in refusal(UsageError, lambda: load(**{"model": "demo"} | {name: value}))


def make_a_folder(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
CONTENTS = {
    CONFIG: ["", '{"model_type": "gem', "{\n  x\n}", b"\xff\xfe{\0}\0", "[1, 2]"],
    GENERATION: ["{", "[]"],
    "tokenizer.json": ["{", "", "{}"],
}
NOT_A_CHECKPOINT: dict[str, tuple[Edit, str]] = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), CONFIG),
    "config is a folder": (make_a_folder, CONFIG),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "safetensors"),
    "other weights": (lambda folder: (folder / WEIGHTS).rename(folder / "x.bin"), "safetensors"),
}
for file, contents in CONTENTS.items():
    cases = {f"{file} {content!r}": (put(file, content), file[:9]) for content in contents}
    NOT_A_CHECKPOINT |= cases
for kind in ("llama", "gemma3_text", ..., ["gemma4"]):
    NOT_A_CHECKPOINT[f"model type {kind}"] = (set_values({"model_type": kind}), "Gemma 4")


@pytest.mark.parametrize("case", NOT_A_CHECKPOINT.values(), ids=NOT_A_CHECKPOINT)
def test_a_folder_that_is_no_checkpoint_is_refused(
    broken: PairPaths, case: tuple[Edit, str]
) -> None:
    edit, word = case
    edit(broken.target)
    assert word in load_refusal(broken.target, None)


def test_a_drafter_of_another_model_or_in_its_place_is_refused(
    tiny: PairPaths, pairs: dict[str, PairPaths]
) -> None:
    assert "drafter" in load_refusal(tiny.drafter)
    assert "drafter" in load_refusal(tiny.target, tiny.target)
    for other in ("E2B", "E4B", "31B"):
        assert "another model" in load_refusal(pairs["26B-A4B"].target, pairs[other].drafter)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("backbone_hidden_size", 128, "128"),
        ("text_config.vocab_size", 512, "512"),
        ("text_config.sliding_window", 24, "24"),
        ("text_config.head_dim", 8, "head size of sliding_attention"),
        ("text_config.per_layer_config.3.head_dim", 8, "full_attention"),
        ("text_config.num_attention_heads", 3, "heads"),
    ],
)
def test_a_drafter_that_does_not_fit_in_one_size_is_refused(
    broken: PairPaths, key: str, value: int, word: str
) -> None:
    set_values({key: value})(broken.drafter)
    assert word in load_refusal(broken.target)


FULL, SLIDING = "rope_parameters.full_attention", "rope_parameters.sliding_attention"
WRONG_VALUES: dict[str, list[Any]] = {
    "num_attention_heads": ["4", 0],
    "hidden_size": [64.5],
    "num_key_value_heads": [0, 3],
    "intermediate_size": [-128],
    "head_dim": [0, 15],
    "per_layer_config.5.head_dim": ["32"],
    "sliding_window": [0, 10**12],
    "layer_types": [["full_attention"], ["linear_attention"] * 6, 5],
    "num_kv_shared_layers": [7, 6, 1, -1, "2"],
    "per_layer_config": [{"last": {"head_dim": 32}}, [1, 2], {"5": 32}],
    "rope_parameters": ["x", {"full_attention": 5}],
    f"{FULL}.rope_theta": [..., 0, -1],
    f"{SLIDING}.rope_theta": [None, "10000"],
    f"{FULL}.rope_type": ["yarn"],
    f"{FULL}.partial_rotary_factor": [-1, 1.5],
    "rms_norm_eps": [0, "1e-6", float("nan")],
    "num_experts": ["8", 0, None],
    "top_k_experts": [0, 1.5, 9],
    "moe_intermediate_size": [0],
    "final_logit_softcapping": ["30", 0],
    "max_position_embeddings": ["1024", 0],
    "attention_bias": [True],
    "hidden_activation": ["silu"],
    "tie_word_embeddings": [False],
    "quantization": ["x", [4]],
    "text_config": ["x"],
}
TOGETHER: list[dict[str, Any]] = [
    {"intermediate_size": None, "moe_intermediate_size": None},
    {"num_hidden_layers": 0, "layer_types": []},
    *({key: value} for key, values in WRONG_VALUES.items() for value in values),
]


@pytest.mark.parametrize("values", TOGETHER, ids=str)
def test_a_wrong_value_in_the_config_is_refused(broken: PairPaths, values: dict[str, Any]) -> None:
    set_values(values)(broken.target)
    load_refusal(broken.target, None)


KEYS = (
    *(*WRONG_VALUES, "vocab_size", "num_hidden_layers", "hidden_size_per_layer_input"),
    *("vocab_size_per_layer_input", "per_layer_config.5", "attention_k_eq_v", "enable_moe_block"),
    *("per_layer_config.5.num_key_value_heads", "use_double_wide_mlp"),
)
STRANGE = (None, "x", "3", -1, 0, 1, 1.5, True, [], {}, [1], {"a": 1}, 10**12, float("nan"), ...)


def strange(folder: Path, key: str, values: Iterable[Any]) -> Iterator[None]:
    """Set a key of the config to each value in turn."""
    before = (folder / CONFIG).read_text()
    for value in values:
        (folder / CONFIG).write_text(before)
        set_values({key: value})(folder)
        yield


@pytest.mark.parametrize("key", KEYS)
def test_a_strange_value_in_the_config_is_refused_or_does_no_harm(
    broken: PairPaths, key: str
) -> None:
    for _ in strange(broken.target, key, STRANGE):
        refused_or_fine(broken.target, None)


@pytest.mark.parametrize("key", ["layer_types", "num_hidden_layers", "num_centroids"])
def test_strange_layers_and_centroids_are_refused_or_do_no_harm(
    pairs: dict[str, PairPaths], tmp_path: Path, key: str
) -> None:
    source = pairs["E2B"]  # its two kinds of layers have the same weights
    target = shutil.copytree(source.target, tmp_path / "target")
    drafter = shutil.copytree(source.drafter, tmp_path / "drafter")
    kinds = ["sliding_attention"], ["full_attention"]
    name = key if key == "num_centroids" else f"text_config.{key}"
    for _ in strange(drafter, name, [*STRANGE, *(kind * 4 for kind in kinds)]):
        refused_or_fine(source.target, drafter)
    if key == "layer_types":
        for _ in strange(target, name, [kind * 10 for kind in kinds]):
            refused_or_fine(target, None)
            refused_or_fine(target, source.drafter)


WRONG_DEFAULTS: dict[str, list[Any]] = {
    "eos_token_id": ["x", VOCAB, [1, -1], {"a": 1}, True],
    "suppress_tokens": [[5, VOCAB], "abc"],
    "temperature": ["hot", -1],
    "top_k": [-5],
    "top_p": [1.5],
}


@each(WRONG_DEFAULTS)
def test_a_wrong_generation_default_is_refused(broken: PairPaths, name: str, value: Any) -> None:
    set_values({name: value}, GENERATION)(broken.target)
    wrong = pytest.raises((CheckpointError, UsageError), match=r"^[^\n]+$")
    with wrong, load(broken.target, None) as engine:
        engine.generate([5])


def test_whole_numbers_of_a_generation_config_may_be_written_as_floats(tmp_path: Path) -> None:
    put(GENERATION, '{"top_k": 64.0, "temperature": 0.7, "eos_token_id": 1.0}')(tmp_path)
    found = read_generation_config(tmp_path)
    assert repr(found["top_k"]) == "64"
    assert repr(found["eos_token_id"]) == "1"
    assert found["temperature"] == 0.7


def test_a_byte_order_mark_at_the_start_of_a_config_is_dropped(tmp_path: Path) -> None:
    put(CONFIG, b'\xef\xbb\xbf{"model_type": "gemma4"}')(tmp_path)
    assert read_config(tmp_path) == {"model_type": "gemma4"}


@pytest.mark.parametrize("eos", [None, [], 1, [1, 50]])
def test_a_generation_config_may_leave_things_out(broken: PairPaths, eos: Any) -> None:
    values = {"eos_token_id": eos, "suppress_tokens": None, "temperature": None, "top_k": None}
    set_values(values, GENERATION)(broken.target)
    with load(broken.target, None) as engine:
        assert engine.generate([5], SamplingParams(max_tokens=2))[0].tokens
