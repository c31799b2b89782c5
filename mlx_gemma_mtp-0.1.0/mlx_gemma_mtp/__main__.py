"""`python -m mlx_gemma_mtp` is the same as `mgm`."""

from mlx_gemma_mtp.cli import main

main()
