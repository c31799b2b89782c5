"""Which checkpoint a short name such as "e4b" means on this machine.

One that is downloaded and fits in memory comes first, else the best of those to download. What
other programs hold at the moment doesn't matter: the same name means the same checkpoint later.
Reads configs in the Hub's cache; asks no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mlx_gemma_mtp import device
from mlx_gemma_mtp.command_buffers import Shape, choose_limits
from mlx_gemma_mtp.files import hub_cache, published
from mlx_gemma_mtp.files.drafters import stem
from mlx_gemma_mtp.files.names import is_folder
from mlx_gemma_mtp.files.published import Size


class Choice(NamedTuple):
    """A checkpoint of the size that was asked for.

    name: what `load` takes, with `bits`, which are None to load it as it is stored. runs_in: the
    bits of most weights once loaded. needs, available, free: bytes; free: of those available, now.
    to_download: bytes, roughly; 0 if it is in the cache.
    """

    asked: str
    name: str
    bits: int | None
    runs_in: int
    needs: int
    available: int
    free: int
    to_download: int

    @property
    def fits(self) -> bool:
        """True if this machine has the memory for it."""
        return self.needs <= self.available

    def __str__(self) -> str:
        stored = f", quantized to {self.bits} bits" if self.bits else ""
        needs, available = f"{self.needs / 1e9:.1f}", f"{self.available / 1e9:.1f} GB"
        room = f"needs {needs} of {available} of memory"
        if not self.fits:
            room = f"needs {needs} GB, {available} available"
        elif self.needs > self.free:
            room += f", but {max(self.free, 0) / 1e9:.1f} GB is free now"
        if self.to_download:
            room += f"; about {self.to_download / 1e9:.0f} GB to download"
        return f"{self.asked}: {self.name}{stored} ({room})"


def choose(
    asked: str,
    *,
    bits: int | None = None,
    available: int | None = None,
    free: int | None = None,
) -> Choice | None:
    """Return the checkpoint for a short name; None if it is not a short name of a size.

    bits: 4 or 8 if it must run in these. If nothing fits, the smallest is chosen. available: bytes
    of an idle machine, by default this one's; free: those of them that are free now.
    """
    size = None if is_folder(asked) else published.size_of(asked)
    if size is None:
        return None
    if available is None:  # asking for the memory starts the GPU
        choose_limits(Shape(size.num_layers, size.hidden_size, size.is_mixture))
    have = device.usable() if available is None else available
    now = device.available() if available is None else have if free is None else free
    choices = [
        Choice(asked, name, quantized, runs_in, size.needs(runs_in), have, now, to_download)
        for name, quantized, runs_in, to_download in _checkpoints(size, bits)
    ]
    smallest = min(choices, key=lambda one: one.needs)
    return next((one for one in choices if one.fits), smallest)


def _checkpoints(size: Size, bits: int | None) -> Iterator[tuple[str, int | None, int, int]]:
    """Yield names, the bits to quantize to, those it then runs in, bytes to load; best first."""
    instructed = stem(size.original)
    cached = [
        (model.name, model.bits or 16)
        for model in hub_cache.models()
        if model.kind == size.kind
        and not (model.is_drafter or model.problem)
        and stem(model.name) in (instructed, f"{instructed}-qat")
    ]
    cached.sort(key=lambda one: -one[1])
    for name, stored in cached:
        if bits in (None, stored):
            yield name, None, stored, 0
    for fewer in (8, 4) if bits is None else (bits,):
        for name, stored in cached:
            if stored >= 16:
                yield name, fewer, fewer, 0
    for fewer in (8, 4):
        if bits in (None, fewer):
            yield size.quantized(fewer), None, fewer, size.weights[fewer]
    if bits not in (None, 8, 4):
        yield size.original, bits, bits, size.weights[16]
