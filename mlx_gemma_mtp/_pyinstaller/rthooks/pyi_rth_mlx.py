"""At the start of an app on macOS: load MLX's library from the folder that its kernels are in.

MLX looks for mlx.metallib next to the path that its library was loaded from. In a bundle, that is a
link in another folder, unless the library is loaded before the extension asks for it.
"""

import ctypes
import sys
from pathlib import Path

if sys.platform == "darwin":
    folder = Path(sys._MEIPASS)  # type: ignore[attr-defined]  # in a bundle alone
    ctypes.CDLL(str(folder / "mlx/lib/libmlx.dylib"))
