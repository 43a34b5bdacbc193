"""HQQ's half-quadratic solver: codes, scales and zeros for a weight, from the weight alone.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs, November 2023. A weight w
of a group is written as (code - zero) / s, where s = (2**nbits - 1) / (max - min) stays as it is, and the zero is found
by turns: errors e = w - (code - zero) / s are shrunk to w_e = sign(e) * relu(|e| - |e|**(p-1) / beta), which keeps
outliers only, and the zero becomes the group's mean of code - (w - w_e) * s; beta grows by kappa each time.

Two things differ from the reference: each group keeps the best of its own zeros and not those of the best round over
the whole weight, so that a result doesn't depend on what is solved with it; and s is bounded by the group's largest
weight rather than by 2e4, so that small weights don't lose codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from kani_lite.exceptions import EngineError

NBITS = (8, 4, 3, 2, 1)
_P, _BETA, _KAPPA = 0.7, 10.0, 1.01
_TILE = 2**17  # weights solved at a time: their temporaries stay in the cache


class Quantized(NamedTuple):
    """A weight (out, in) as (codes - zeros) * scales.

    `codes`: (out, in) uint8. `scales`, `zeros`: float32, (out, in / group_size) for groups along rows (axis 1); for
    axis 0 (in * out / group_size,), of which each belongs to a column of the weight reshaped to (group_size, -1), as
    in hqq.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def dequantize(self, axis: int = 1) -> torch.Tensor:
        """(out, in) float32."""
        scales, zeros = self.scales.reshape(-1, 1), self.zeros.reshape(-1, 1)
        grouped = _grouped(self.codes, self.codes.numel() // scales.numel(), axis)
        return _ungrouped((grouped - zeros) * scales, self.codes.shape, axis)


@torch.no_grad()
def quantize(
    weight: torch.Tensor,
    nbits: int = 4,
    group_size: int | None = 64,
    axis: int = 1,
    *,
    iterations: int = 20,
    least_squares: bool = False,
) -> Quantized:
    """Finds codes of `nbits` for a weight (out, in) of any float dtype, in groups of `group_size` (None: a whole row,
    or for axis 0 a whole column). `iterations=0` is plain rounding to nearest.

    `least_squares` ends with the scale and the zero that fit the codes best: 2 to 3 % less squared error at 4 bits, 20
    to 40 % at 2. Raises EngineError for an unknown nbits or axis, groups that don't fill the weight, or weights that
    are not finite.
    """
    size = _check(weight, nbits, group_size, axis)
    groups = _grouped(weight, size, axis)
    codes = torch.empty(groups.shape, dtype=torch.uint8, device=weight.device)
    scales, zeros = (torch.empty(len(groups), device=weight.device) for _ in range(2))
    step = max(1, _TILE // size)
    with _one_thread():
        for start in range(0, len(groups), step):
            part = slice(start, start + step)
            w = groups[part].float()
            q, s, z = _solve(w, 2**nbits - 1, iterations, round_zero=nbits == 4)
            if least_squares:
                s, z = _fitted(w, q, s, z)
            codes[part], scales[part], zeros[part] = q, s.reciprocal_().squeeze(1), z.squeeze(1)
    if not bool(scales.isfinite().all() & zeros.isfinite().all()):
        raise EngineError("A weight holds numbers that aren't finite: the model's files are damaged or it diverged.")
    shape = (weight.shape[0], -1) if axis == 1 else (-1,)
    return Quantized(_ungrouped(codes, weight.shape, axis), scales.view(shape), zeros.view(shape))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The solver works in short steps on small tiles, where threads mostly wait for each other: one takes 13 s for
    360 M weights where two took 50 to 600 s, by what else ran on the machine's two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(weight: torch.Tensor, nbits: int, group_size: int | None, axis: int) -> int:
    if nbits not in NBITS:
        raise EngineError(f"nbits={nbits} is unknown: give one of {NBITS}.")
    if axis not in (0, 1) or weight.ndim != 2:
        raise EngineError(f"axis={axis} of a weight of {tuple(weight.shape)}: give a matrix, and 0 or 1.")
    size = weight.shape[axis] if group_size is None else group_size
    whole = weight.shape[1] if axis == 1 else weight.numel()
    if size < 1 or whole % size:
        raise EngineError(f"Groups of {size} don't fill a weight of {tuple(weight.shape)}: give another group_size.")
    return size


def _grouped(matrix: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """A view or copy of shape (groups, size)."""
    return matrix.reshape(-1, size) if axis == 1 else matrix.reshape(size, -1).t()


def _ungrouped(groups: torch.Tensor, shape: torch.Size, axis: int) -> torch.Tensor:
    return groups.reshape(shape) if axis == 1 else groups.t().reshape(shape)


def _solve(
    w: torch.Tensor, most: int, iterations: int, round_zero: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For w (groups, size) the codes as floats, and s and zero of (groups, 1). All is computed in units of a code:
    u = w * s, and an error there is s times as large."""
    low, high = torch.aminmax(w, dim=1, keepdim=True)
    size = torch.maximum(low.abs(), high.abs())
    s = most / torch.maximum(high - low, size * 2**-14).clamp_(min=1e-12)
    zero = -low * s
    if round_zero:
        zero.round_()
    u = w * s
    codes, error = torch.empty_like(u), torch.empty_like(u)
    best_zero, best = zero, torch.full_like(s, torch.inf)
    beta = _BETA
    for _ in range(iterations):
        torch.add(u, zero, out=error)
        torch.round(error, out=codes).clamp_(0, most)
        error.sub_(codes)
        absolute = error.abs()
        mean = absolute.mean(1, keepdim=True)
        better = mean < best
        if not better.any():
            break
        best, best_zero = torch.where(better, mean, best), torch.where(better, zero, best_zero)
        zero = zero - _without_outliers(error, absolute, s, beta).mean(1, keepdim=True)
        beta *= _KAPPA
    torch.add(u, best_zero, out=codes).round_().clamp_(0, most)
    return codes, s, best_zero


def _without_outliers(error: torch.Tensor, absolute: torch.Tensor, s: torch.Tensor, beta: float) -> torch.Tensor:
    """The errors less what shrinking leaves of them. Shrinking leaves something only above s * beta**(-1 / (2 - p)),
    which small weights never reach; the power, the dearest step, is then left out."""
    if bool((absolute.amax(1, keepdim=True) <= s * beta ** (-1 / (2 - _P))).all()):
        return error
    kept = (absolute - s ** (2 - _P) / beta * absolute.pow(_P - 1)).relu_()
    return error - kept.copysign_(error)


def _fitted(
    w: torch.Tensor, codes: torch.Tensor, s: torch.Tensor, zero: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """s and zero of the line through (code, w) by least squares, for groups with more than one code."""
    mean_code, mean = codes.mean(1, keepdim=True), w.mean(1, keepdim=True)
    spread = (codes - mean_code).square().sum(1, keepdim=True)
    slope = ((codes - mean_code) * (w - mean)).sum(1, keepdim=True) / spread
    fits = (spread > 0) & (slope > 0)
    return torch.where(fits, 1 / slope, s), torch.where(fits, mean_code - mean / slope, zero)
