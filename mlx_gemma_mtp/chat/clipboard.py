"""Text to the clipboard: by a program of the system, or by the terminal itself (OSC 52)."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from typing import TextIO

from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.show import can_draw

# Programs that read the text from stdin, and the variable that shows the desktop of each.
PROGRAMS = (
    (("pbcopy",), None),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
)
MAX_OSC_BYTES = 74_994  # common terminals drop more than that, as base64


def copy(text: str, terminal: TextIO) -> str:
    """Copy a text; return how. Raises MgmError if that is not possible."""
    data = text.encode()
    remote = "SSH_CONNECTION" in os.environ  # the system's clipboard is not the user's
    for command, variable in PROGRAMS:
        has_desktop = variable is None or os.environ.get(variable)
        if not remote and has_desktop and shutil.which(command[0]):
            # Some programs stay in the background and would keep inherited streams open.
            null = subprocess.DEVNULL
            try:
                subprocess.run(command, input=data, stdout=null, stderr=null, timeout=5, check=True)
            except (OSError, subprocess.SubprocessError) as error:
                raise MgmError(f"{command[0]} failed: {error}") from None
            return f"copied with {command[0]}"
    if not can_draw(terminal):
        raise MgmError("no clipboard found: install pbcopy, wl-copy, xclip or xsel")
    if len(data) > MAX_OSC_BYTES:
        raise MgmError("the answer is too long for the terminal's clipboard: use /save FILE")
    terminal.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    terminal.flush()
    return "sent to the terminal's clipboard (OSC 52); if pasting fails, use /save"
