"""What an app with this package needs and PyInstaller cannot see in the source.

MLX's extension imports Python modules from C++, and reads its kernels from a file.
"""

from PyInstaller.utils.hooks import collect_data_files

hiddenimports = ["mlx._reprlib_fix", "mlx.__array_api_info"]
datas = [
    *collect_data_files("mlx_gemma_mtp", includes=["demo/gemma-4-demo-it*/*"]),
    *collect_data_files("mlx", includes=["lib/*.metallib"]),  # macOS
]
