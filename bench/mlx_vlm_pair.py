"""A pair in mlx-vlm 0.7.10: its Gemma 4 classes, on our arrays.

Knows where those classes are and how to import them where mlx-vlm's dependencies are missing;
nothing of decoding.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from .lend import lend, settings

VERSION = "0.7.10"


def hand_over(target: Target, drafter: Drafter | None, *, copy_experts: bool) -> tuple[Any, Any]:
    """mlx-vlm's language model and assistant on our arrays, which stay ours too.

    The assistant is None where there is no drafter; copy_experts is `lend`'s. Raises UsageError
    where mlx-vlm is not installed in this version.
    """
    _find_mlx_vlm()
    from mlx_vlm.models.gemma4.config import TextConfig
    from mlx_vlm.models.gemma4.language import LanguageModel
    from mlx_vlm.speculative.drafters.gemma4_assistant import Gemma4AssistantDraftModel, ModelConfig

    language = LanguageModel(TextConfig.from_dict(settings(target.config)))
    lend(target, language, copy_experts=copy_experts)
    if drafter is None:
        return language, None
    text = TextConfig.from_dict(settings(drafter.config))
    fields = vars(drafter.config) | {"text_config": text}
    assistant = Gemma4AssistantDraftModel(ModelConfig.from_dict(fields))
    # Their centroid head takes rows out of the embedding's weights as if they were never quantized.
    plain = ["embed_tokens"] if drafter.config.use_ordered_embeddings else []
    lend(drafter, assistant, copy_experts=copy_experts, plain=plain)
    return language, assistant


def need_mlx_vlm() -> None:
    """Raises UsageError where it is missing: better asked before than after loading a model."""
    install = f"pip install --no-deps mlx-vlm=={VERSION} tqdm"
    try:
        found = version("mlx-vlm")
    except PackageNotFoundError:
        raise UsageError(f"mlx-vlm is not installed; to compare with it: {install}") from None
    if found != VERSION:
        raise UsageError(f"this compares with mlx-vlm {VERSION}, not {found}: {install}")


def _find_mlx_vlm() -> None:
    """Make importable what of mlx-vlm decodes text, without the rest of its dependencies.

    The `__init__` of these packages imports image, audio and server code, and with it
    transformers, requests, opencv and more. So the packages are entered past their `__init__`. Two
    modules then remain that the decoding code imports and plain token ids never reach:
    `mlx_vlm.utils`, and PIL, which may not be installed. They are left empty.
    """
    need_mlx_vlm()
    if "mlx_vlm" in sys.modules:
        return
    spec = find_spec("mlx_vlm")
    assert spec is not None
    assert spec.origin is not None  # installed as it is
    home = Path(spec.origin).parent
    for name in ("", ".generate", ".models.gemma4", ".models.qwen3_5", ".speculative"):
        _enter(f"mlx_vlm{name}", __path__=[str(home.joinpath(*name.split(".")))])
    drafters = [str(home / "speculative" / "drafters")]
    unchecked = {"validate_drafter_compatibility": lambda *_: None}
    _enter("mlx_vlm.speculative.drafters", __path__=drafters, **unchecked)
    unused = ("group_images_by_shape", "prepare_inputs", "should_add_special_tokens")
    _enter("mlx_vlm.utils", **dict.fromkeys(unused))
    if find_spec("PIL") is None:
        _enter("PIL", Image=None)


def _enter(name: str, **attributes: Any) -> None:
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(attributes)
