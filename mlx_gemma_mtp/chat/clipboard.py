"""Text to the clipboard: by the system's own program, or by the terminal itself (OSC 52)."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from typing import TextIO

from mlx_gemma_mtp.errors import MgmError

# Programs that take the text on stdin, and the variable without which each has no desktop.
PROGRAMS = (
    (("pbcopy",), None),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
)
MOST_OSC_BYTES = 74_994  # more than that, as base64, is dropped by common terminals
SECONDS = 5.0


def copy(text: str, terminal: TextIO) -> str:
    """Copy it; says how. Raises MgmError where that cannot be done."""
    far = "SSH_CONNECTION" in os.environ  # then the clipboard of the system is not the person's
    for command, variable in PROGRAMS:
        has_desktop = variable is None or os.environ.get(variable)
        if not far and has_desktop and shutil.which(command[0]):
            return _by_program(command, text)
    if not terminal.isatty() or os.environ.get("TERM") == "dumb":
        raise MgmError("there is no clipboard here: no pbcopy, wl-copy, xclip or xsel")
    data = text.encode()
    if len(data) > MOST_OSC_BYTES:
        raise MgmError("the answer is too long for the terminal's clipboard: /save FILE keeps it")
    terminal.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    terminal.flush()
    return "handed to the terminal (OSC 52), which may or may not take it"


def _by_program(command: tuple[str, ...], text: str) -> str:
    try:
        # Some stay in the background and keep what they inherit open.
        subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MgmError(f"{command[0]} did not take it: {error}") from None
    return f"copied by {command[0]}"
