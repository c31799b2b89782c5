"""What a checkpoint says of sampling and of where an answer ends.

Takes generation_config.json, config.json, the tokenizer and the chat template together. Knows
nothing of requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.decode.params import SamplingParams, is_count
from mlx_gemma_mtp.errors import CheckpointError, UsageError
from mlx_gemma_mtp.files import checkpoint
from mlx_gemma_mtp.text.tokenizer import Text

GENERATION = "generation_config.json"
EOS, STOP, SUPPRESS = "eos_token_id", "stop_strings", "suppress_tokens"

APPLIED = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
APPLIED |= {EOS, STOP, SUPPRESS}
# Transformers' keys that change no token of one sampled output.
HARMLESS = re.compile(
    r"_.*|(assistant|cache|compile|continuous|num_assistant|output|prompt_lookup|return)_.*"
    r"|(bos|pad|decoder_start)_token_id|transformers_version|trust_remote_code|is_assistant"
    r"|use_cache|low_memory|disable_compile|prefill_chunk_size|max_matching_ngram_size"
    r"|target_lookbehind|num_return_sequences|renormalize_logits|remove_invalid_values"
    r"|length_penalty|early_stopping|num_beam_groups|diversity_penalty"  # of num_beams
)
# Keys that 1 switches off. Null, false, 0 and an empty value switch off any.
ONE_IS_OFF = {"encoder_repetition_penalty", "guidance_scale", "typical_p"}
ONE_IS_OFF |= {"num_beams"}


def read_defaults(folder: Path, text: Text | None) -> dict[str, Any]:
    """Return the folder's generation_config; its eos_token_id has the ends of all places.

    Raises CheckpointError for values of a wrong kind.
    """
    found = checkpoint.read_generation_config(folder)
    try:
        SamplingParams(stop=found.get(STOP) or ()).resolved(found)
    except UsageError as error:
        raise CheckpointError(f"{folder / GENERATION}: {error}") from None
    config = checkpoint.read_config(folder)
    size = checkpoint.read_target_config(folder).vocab_size
    ends = token_ids(found.get(EOS), size, f"{GENERATION}: {EOS}")
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            ends += token_ids(checkpoint.whole(section.get(EOS)), size, f"config.json: {EOS}")
    if text is not None:  # an id beyond the tokenizer's ends nothing
        named = [one for one in text.end_tokens() if one < size]
        ends = [*filter(text.has_token, ends), *named]
    return found | {EOS: sorted(set(ends))}


def token_ids(found: Any, vocab_size: int, where: str) -> list[int]:
    """Return the token ids of an entry, which may be one number, a list or null.

    Raises CheckpointError for anything else.
    """
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(is_count(one) and 0 <= one < vocab_size for one in ids):
        raise CheckpointError(f"{where} is {found!r}, not token ids")
    return list(ids)


def notes(defaults: Mapping[str, Any], text: Text | None) -> tuple[str, ...]:
    """Return what people should know of a checkpoint, one line each.

    It has no chat template, or its generation_config asks for what is not applied.
    """
    asked = [
        f"{key}={_shown(value)}"
        for key, value in defaults.items()
        if key not in APPLIED
        and not HARMLESS.fullmatch(key)
        and value
        and not (key in ONE_IS_OFF and value == 1)
    ]
    found = []
    if text is not None and not text.has_template:
        found.append("no chat template found: prompts are continued, not answered")
    if asked:
        they = "which is" if len(asked) == 1 else "which are"
        found.append(f"{GENERATION} asks for {', '.join(asked)}, {they} not applied")
    return tuple(found)


def _shown(value: Any) -> str:
    """Return a value as a line can show it."""
    return str(value) if isinstance(value, (bool, int, float)) else "…"
