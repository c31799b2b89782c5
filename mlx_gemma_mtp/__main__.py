"""The `mgm` command; `python -m mlx_gemma_mtp` is the same. Knows nothing of what it can do.

Ctrl-C ends it at any point, also before its modules are imported.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from mlx_gemma_mtp.errors import INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or exit during an import, which may hide or lose what is raised."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def main() -> None:
    """Run the command of this process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from mlx_gemma_mtp.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
