"""Measuring what speculation buys: `python -m mlx_gemma_mtp.bench`."""
