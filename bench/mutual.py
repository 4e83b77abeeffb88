"""Mutual information between the clusters of two maps, over all small shifts: the loss of IIC.

Source: Ji et al. (arXiv 1807.06653), section 3.3, and the authors' code where it says more. For a shift s, the joint
probability of clusters i and j is the sum over pictures and pixels of first(i, pixel + s) · second(j, pixel), with
zeros around the maps, brought to a sum of 1 and made symmetric. With probabilities p and marginals m the loss is

    -Σ p · (log p - λ · log m_i - λ · log m_j)

which for λ = 1 is minus the mutual information, in nats. `uncollapsed` it is the mean over the shifts; `collapsed` it
is taken once, of the joint probability summed over them.

The authors take the sums as a convolution whose kernel is the other map. Here they are products of spectra, of which
only the window of shifts is transformed back (`make bench` has the ratio).
"""

from __future__ import annotations

import math
import sys
from typing import Any, Literal, NamedTuple

import torch
from scipy.fft import next_fast_len

from bench import distributed

__all__ = ["Information", "Shifts", "correlation", "information_loss", "unflipped"]

Shifts = Literal["uncollapsed", "collapsed"]

_SMALLEST = sys.float_info.epsilon
"""What probabilities are held above before their logarithm is taken, as in the authors' code."""


class Information(NamedTuple):
    """Scalars. loss: as weighted by λ. information: the same for λ = 1 and with its sign, in nats, without gradient."""

    loss: torch.Tensor
    information: torch.Tensor


def information_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    reach: int = 10,
    weight: float = 1.0,
    shifts: Shifts = "uncollapsed",
) -> Information:
    """The loss of two maps of probabilities, float (B, K, H, W), of the same pictures in the same frame.

    reach: shifts of up to so many pixels along either axis, (2 · reach + 1)² in all. weight: λ.
        Both sides must be larger than it: every shift needs pixels in common.
    A pixel at which a map is zero counts nowhere, which is how the authors' code hides what a data set masks.
    With several processes the sums are those over all of them, and so is the loss; the gradient is at this process's
    maps.
    """
    joint = correlation(first, second, reach)
    if shifts == "collapsed":
        joint = joint.sum((0, 1), keepdim=True)
        joint = joint / joint.sum().detach()
    else:
        joint = joint / joint.sum((2, 3), keepdim=True)
    joint = (joint + joint.transpose(2, 3)) / 2
    rows, columns = (joint.sum(axis, keepdim=True).clamp_min(_SMALLEST).log() for axis in (3, 2))
    joint = joint.clamp_min(_SMALLEST)
    places = joint.shape[0] * joint.shape[1]
    of_both = (joint * joint.log()).sum() / places
    of_each = (joint * (rows + columns)).sum() / places
    return Information(weight * of_each - of_both, (of_both - of_each).detach())


def unflipped(maps: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Maps (B, K, H, W) of pictures of which some were mirrored, bool (B,), in the frame of the unmirrored ones."""
    return torch.where(flipped[:, None, None, None], maps.flip(3), maps)


def correlation(first: torch.Tensor, second: torch.Tensor, reach: int) -> torch.Tensor:
    """Σ over pictures n and pixels (y, x) of first(n, i, y + s, x + t) · second(n, j, y, x), zeros around the maps.

    first, second: float (B, K, H, W). Returns (2 · reach + 1, 2 · reach + 1, K, K), the shift (s, t) at
    (s + reach, t + reach); with several processes the sum over all of them. Differentiable once.
    """
    sums: torch.Tensor = _Correlation.apply(first, second, reach)
    return sums


class _Correlation(torch.autograd.Function):
    """A product of spectra, and the products that are its adjoint; what is saved are the spectra of the maps."""

    @staticmethod
    def forward(ctx: Any, first: torch.Tensor, second: torch.Tensor, reach: int) -> torch.Tensor:
        ctx.frame = frame = _Frame(first, reach)
        spectra = [frame.spectrum(maps) for maps in (first, second)]
        ctx.save_for_backward(*spectra)
        sums = frame.at_shifts(spectra[0] @ spectra[1].mH)
        distributed.sum_([sums])
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        first, second = ctx.saved_tensors
        spectrum = ctx.frame.of_shifts(gradient)
        return ctx.frame.maps(spectrum @ second), ctx.frame.maps(spectrum.mH @ first), None


class _Frame:
    """Maps (B, K, H, W), their spectra (frequencies, K, B), and the shifts (S, S, K, K) at which two are compared.

    The maps lie in a frame of zeros so wide that what leaves it on one side does not meet them on the other. Only half
    of the frequencies along W are kept: the others are their conjugates.
    """

    def __init__(self, maps: torch.Tensor, reach: int) -> None:
        self.height, self.width = maps.shape[2:]
        self.sides = tuple(next_fast_len(side + reach, real=True) for side in maps.shape[2:])
        self.frequencies = (self.sides[0], self.sides[1] // 2 + 1)
        self.down, self.across = (
            _waves(reach, count, side).to(maps.device, maps.dtype.to_complex())
            for count, side in zip(self.frequencies, self.sides, strict=True)
        )
        mirrored = torch.full((self.frequencies[1],), 2.0, dtype=maps.dtype, device=maps.device)
        mirrored[0] = 1
        if self.sides[1] % 2 == 0:
            mirrored[-1] = 1
        self.share = mirrored / (self.sides[0] * self.sides[1])

    def spectrum(self, maps: torch.Tensor) -> torch.Tensor:
        spectra: torch.Tensor = torch.fft.rfft2(maps, s=self.sides)
        return spectra.permute(2, 3, 1, 0).flatten(0, 1).contiguous()

    def maps(self, spectrum: torch.Tensor) -> torch.Tensor:
        spectra = spectrum.view(*self.frequencies, *spectrum.shape[1:]).permute(3, 2, 0, 1)
        framed: torch.Tensor = torch.fft.irfft2(spectra, s=self.sides)
        return framed[..., : self.height, : self.width]

    def at_shifts(self, spectrum: torch.Tensor) -> torch.Tensor:
        """The inverse transform of a spectrum (frequencies, K, K) at the shifts alone, (S, S, K, K)."""
        shifts = len(self.down)
        rows = self.down @ spectrum.view(self.frequencies[0], -1)
        both: torch.Tensor = (self.across * self.share) @ rows.view(shifts, self.frequencies[1], -1)
        return both.real.view(shifts, shifts, *spectrum.shape[1:])

    def of_shifts(self, values: torch.Tensor) -> torch.Tensor:
        """The spectrum (frequencies, K, K) of values (S, S, K, K) at the shifts, zero elsewhere."""
        columns = self.across.mH @ values.flatten(2).to(self.across.dtype)
        both = self.down.mH @ columns.flatten(1)
        return both.view(-1, *values.shape[2:])


def _waves(reach: int, count: int, side: int) -> torch.Tensor:
    """exp(2πi · shift · frequency / side), complex128 (2 · reach + 1, count)."""
    shifts = torch.arange(-reach, reach + 1, dtype=torch.float64)
    angles = torch.outer(shifts, torch.arange(count, dtype=torch.float64)) * (2 * math.pi / side)
    return torch.polar(torch.ones_like(angles), angles)
