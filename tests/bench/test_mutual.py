"""The loss of IIC: the authors' values, a brute-force sum over shifts, and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.mutual import correlation, information_loss, unflipped

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "iic_loss.npz")
REACH = 10


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def warped(maps: torch.Tensor, how: str) -> torch.Tensor:
    """The second maps of the golden file in the frame of the first."""
    if how == "flip":
        return unflipped(maps, golden("affine_flip")[:, 0, 0] < 0)
    if how == "identity":
        return maps
    align = how.endswith("ac1")
    grid = functional.affine_grid(golden("affine_general"), list(maps.shape), align_corners=align)
    return functional.grid_sample(maps, grid, align_corners=align)


def masked(maps: torch.Tensor, mask: str) -> torch.Tensor:
    """As the reference hides pixels of both maps before it compares them."""
    return maps * golden(f"mask_{mask}")[:, None]


@pytest.mark.parametrize("mask", ["ones", "holes"])
@pytest.mark.parametrize("how", ["identity", "flip", "general_ac1", "general_ac0"])
@pytest.mark.parametrize("shifts", ["uncollapsed", "collapsed"])
def test_the_reference_values(shifts, how, mask):
    for weight in (1.0, 1.5):
        wanted = GOLDEN[f"{shifts}_{how}_{mask}_lamb{weight}"]
        seen = information_loss(
            masked(golden("p1"), mask), masked(warped(golden("p2"), how), mask), reach=REACH, weight=weight,
            shifts=shifts,
        )  # fmt: skip
        assert np.allclose([float(seen.loss), -float(seen.information)], wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("how", "mask"), [("identity", "ones"), ("general_ac1", "holes")])
def test_the_reference_gradients(how, mask):
    maps = [golden(name).requires_grad_() for name in ("p1", "p2")]
    seen = information_loss(masked(maps[0], mask), masked(warped(maps[1], how), mask), reach=REACH, weight=1.5)
    seen.loss.backward()
    name = f"uncollapsed_{how}_{mask}_lamb1.5"
    for index, one in enumerate(maps, start=1):
        assert one.grad is not None
        assert float(one.grad.norm()) == pytest.approx(float(GOLDEN[f"{name}_grad{index}_norm"]), rel=1e-9)
        wanted = golden(f"{name}_grad{index}")
        assert (one.grad[:, ::5, ::6, ::6] - wanted).abs().max() <= 1e-9 * wanted.abs().max()


def joint_by_shifts(first: np.ndarray, second: np.ndarray, reach: int) -> np.ndarray:
    """Σ first(i, pixel + shift) · second(j, pixel) over the pixels whose shifted place lies in the map."""
    pictures, clusters, height, width = first.shape
    found = np.zeros((2 * reach + 1, 2 * reach + 1, clusters, clusters))
    for n, y, x in np.ndindex(pictures, height, width):
        for s, t in np.ndindex(2 * reach + 1, 2 * reach + 1):
            top, left = y + s - reach, x + t - reach
            if 0 <= top < height and 0 <= left < width:
                found[s, t] += np.outer(first[n, :, top, left], second[n, :, y, x])
    return found


def information_by_hand(joint: np.ndarray, weight: float) -> float:
    total = 0.0
    for table in joint.reshape(-1, *joint.shape[2:]):
        p = table / table.sum()
        p = (p + p.T) / 2
        marginal = p.sum(0)
        total -= sum(
            p[i, j] * (np.log(p[i, j]) - weight * np.log(marginal[i]) - weight * np.log(marginal[j]))
            for i, j in np.ndindex(p.shape)
        )
    return total / (joint.shape[0] * joint.shape[1])


@pytest.mark.parametrize("weight", [1.0, 1.5])
@pytest.mark.parametrize("size", [(5, 7), (6, 4)])
def test_a_brute_force_sum_over_shifts(size, weight):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 3, *size, dtype=torch.float64, generator=generator).softmax(1) for _ in range(2))
    joint = joint_by_shifts(first.numpy(), second.numpy(), reach=3)
    assert np.allclose(correlation(first, second, 3), joint, rtol=1e-12)
    uncollapsed = information_loss(first, second, reach=3, weight=weight)
    assert float(uncollapsed.loss) == pytest.approx(information_by_hand(joint, weight), rel=1e-6)
    collapsed = information_loss(first, second, reach=3, weight=weight, shifts="collapsed")
    summed = joint.sum((0, 1), keepdims=True)
    assert float(collapsed.loss) == pytest.approx(information_by_hand(summed, weight), rel=1e-6)
    if weight == 1:
        assert float(collapsed.loss) == -float(collapsed.information)


def test_sums_and_gradients_are_those_of_a_convolution_with_the_other_map():
    first, second = (torch.rand(3, 4, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plain = functional.conv2d(first.transpose(0, 1), second.transpose(0, 1), padding=2).permute(2, 3, 0, 1)
    ours = correlation(first, second, 2)
    assert torch.allclose(ours, plain, rtol=1e-12)
    direction = torch.randn_like(plain)
    for seen, wanted in zip(*(torch.autograd.grad(sums, (first, second), direction) for sums in (ours, plain)),
                            strict=True):  # fmt: skip
        assert torch.allclose(seen, wanted, rtol=1e-10)


def test_single_precision_is_near_double():
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(4, 10, 40, 40, dtype=torch.float64, generator=generator).mul(3).softmax(1) for _ in range(2)]
    found = []
    for dtype in (torch.float64, torch.float32):
        held = [one.detach().to(dtype, copy=True).requires_grad_() for one in maps]
        loss = information_loss(*held).loss
        loss.backward()
        found.append((loss.detach().double(), held[0].grad.double()))
    (exact, gradient), (seen, seen_gradient) = found
    assert float(seen) == pytest.approx(float(exact), rel=1e-3)
    assert (seen_gradient - gradient).norm() <= 1e-3 * gradient.norm()


def test_equal_certain_maps_hold_all_the_information_there_is():
    ids = torch.arange(4).repeat_interleave(8)[None, None, :].expand(1, 32, 32)
    certain = functional.one_hot(ids, 4).permute(0, 3, 1, 2).double()
    told = information_loss(certain, certain, reach=0)
    assert float(told.information) == pytest.approx(np.log(4))
    constant = torch.full_like(certain, 0.25)
    assert float(information_loss(certain, constant, reach=2).information) == pytest.approx(0, abs=1e-5)
    assert 0 < float(information_loss(certain, certain, reach=4).information) < np.log(4)


def test_mirrored_pictures_come_back():
    maps = torch.arange(12.0).view(2, 1, 2, 3)
    seen = unflipped(maps, torch.tensor([False, True]))
    assert torch.equal(seen[0], maps[0])
    assert seen[1, 0, 0].tolist() == [8, 7, 6]
