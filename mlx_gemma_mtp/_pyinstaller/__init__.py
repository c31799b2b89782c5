"""What PyInstaller needs to know to put this package into an app. It asks through an entry point.

See docs/shipping.md. Nothing here is imported outside a build.
"""

from __future__ import annotations

from pathlib import Path


def hook_folders() -> list[str]:
    """Return where the hooks are: a build looks there for the packages that an app imports."""
    return [str(Path(__file__).parent)]
