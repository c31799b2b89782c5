"""Prepares checkpoints for this runtime: `mgm convert` makes them, `mgm verify` checks them.

Stands at the root of the repository; installed as `mlx_gemma_mtp.convert`."""
