"""The demo's files without its weights, for tests that change what a checkpoint says."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlx_gemma_mtp.files.names import DEMO

TEMPLATE, TOKENIZER = "chat_template.jinja", "tokenizer.json"
CONFIG, GENERATION, NAMES = "config.json", "generation_config.json", "tokenizer_config.json"
WRITTEN = (DEMO / TEMPLATE).read_text()  # the chat template


def small_files(folder: Path, *, without: str = "") -> Path:
    """Copy them into a folder, without this one, and return the folder."""
    folder.mkdir(exist_ok=True)
    for name in {TEMPLATE, TOKENIZER, CONFIG, GENERATION, NAMES} - {without}:
        shutil.copy(DEMO / name, folder)
    return folder
