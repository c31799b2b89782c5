"""Measures this runtime: where the measurements of `mgm bench` will live.

Stands at the root of the repository; installed as `mlx_gemma_mtp.bench`."""
