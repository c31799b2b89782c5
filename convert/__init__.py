"""Prepares checkpoints for this runtime: where the tools of `mgm convert` will live.

Stands at the root of the repository; installed as `mlx_gemma_mtp.convert`."""
