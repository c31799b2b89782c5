"""Opening a pair: a target, its drafter, its tokenizer and its checkpoint's sampling defaults."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp import memory
from mlx_gemma_mtp.decode.table import PassTable
from mlx_gemma_mtp.engine.defaults import GENERATION, notes, read_defaults, token_ids
from mlx_gemma_mtp.engine.loading import Models, PairFiles, Watch
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files import weights
from mlx_gemma_mtp.files.checkpoint import is_drafter
from mlx_gemma_mtp.files.choice import choose
from mlx_gemma_mtp.files.find import find_pair, target_name
from mlx_gemma_mtp.files.plan import Download
from mlx_gemma_mtp.files.preview import previews
from mlx_gemma_mtp.files.remembered import depth_key
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.text.tokenizer import Text


class OpenPair(NamedTuple):
    """What an engine is made of.

    defaults: the checkpoint's generation_config, see `defaults`. fingerprint: the key under which
    the measured depth is saved, made of all that the cost of a round depends on; None to save
    nothing. notes: what people should know of the checkpoint, one line each. drafter_name: its Hub
    name, or that of its folder; so is name, the target's. table: what a probe has just measured, in
    place of the saved one. files: what the models were loaded from; None if they were not.
    """

    target: Target
    drafter: Drafter | None
    text: Text | None
    defaults: dict[str, Any]
    fingerprint: str | None
    notes: tuple[str, ...] = ()
    drafter_name: str | None = None
    table: PassTable | None = None
    name: str | None = None
    files: PairFiles | None = None

    @property
    def models(self) -> Models:
        return Models(self.target, self.drafter)

    def default_tokens(self, key: str) -> list[int]:
        """Return the token ids of an entry of the defaults. Raises CheckpointError."""
        size = self.target.config.vocab_size
        return token_ids(self.defaults.get(key), size, f"{GENERATION}: {key}")


def open_pair(
    model: str | Path,
    drafter: str | Path | None = "auto",
    *,
    bits: int | None = None,
    force: bool = False,
    memory_limit: int | None = None,
    watch: Watch | None = None,
) -> OpenPair:
    """Load the weights and everything that belongs to them. Arguments and errors as `load`.

    watch: see `PairFiles.load`.
    """
    choice = choose(model, bits=bits) if isinstance(model, str) else None
    if choice is not None:
        model, bits = choice.name, choice.bits
    if force:
        folder, drafter_folder = find_pair(model, drafter)
    else:
        check = partial(check_downloads, bits=bits, most=memory_limit)
        folder, drafter_folder = find_pair(model, drafter, check)
        _check_load(folder, drafter_folder, str(model), bits, memory_limit)

    text = Text(folder) if (folder / "tokenizer.json").exists() else None
    defaults = read_defaults(folder, text)
    found = notes(defaults, text)

    files = PairFiles(folder, drafter_folder, bits)
    models = files.load(watch)
    given = [model for model in models if model is not None]
    sizes = [weights.num_bytes(model) for model in given]
    shape = repr((*[model.config for model in given], models.target.dtype, sizes))
    key = depth_key(folder.name, hashlib.sha256(shape.encode()).hexdigest()[:12])
    drafter_name = None if drafter_folder is None else target_name(drafter_folder, drafter_folder)
    name = target_name(folder, folder)
    return OpenPair(*models, text, defaults, key, found, drafter_name, name=name, files=files)


def check_downloads(
    downloads: Sequence[Download], *, bits: int | None = None, most: int | None = None
) -> None:
    """Raise what `load` would raise after this download: if it is too large, or not loadable.

    most: bytes that it may take. Asks the Hub for configs and headers only. A drafter alone passes.
    """
    with previews(downloads) as folders:
        if not is_drafter(folders[0]):
            _check_load(folders[0], (*folders[1:], None)[0], downloads[0].name, bits, most)


def _check_load(
    folder: Path, beside: Path | None, name: str, bits: int | None, most: int | None
) -> None:
    mlx_worker().run(partial(memory.check_load, folder, beside, name, bits=bits, most=most))
