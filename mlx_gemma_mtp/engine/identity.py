"""Which weights a session's keys and values come from, as a digest. Knows no sessions."""

from __future__ import annotations

import hashlib

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma_mtp.model.target import Target

SAMPLES = 4096  # values of an array
MOST_FLAT = 2**31 - 1  # values along one axis in MLX; an embedding of E4B in bfloat16 has more


def model_identity(target: Target) -> str:
    """Return a digest of the weights that keys and values come from: config, types and values.

    Of large arrays SAMPLES values, evenly spread; of others all. Evaluates arrays: on the worker.
    """
    parameters = dict(tree_flatten(target.parameters()))
    about = [(name, array.shape, str(array.dtype)) for name, array in sorted(parameters.items())]
    digest = hashlib.sha256(repr((target.config, about)).encode())
    samples = [_sample(array).view(mx.uint8) for _, array in sorted(parameters.items())]
    mx.eval(samples)  # all at once
    for sample in samples:
        digest.update(np.array(sample).tobytes())
    return digest.hexdigest()


def _sample(array: mx.array) -> mx.array:
    if array.size > MOST_FLAT:
        array = array[:: max(1, len(array) // SAMPLES)]
    return mx.contiguous(array.reshape(-1)[:: max(1, array.size // SAMPLES)])
