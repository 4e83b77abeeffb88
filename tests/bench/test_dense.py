from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench import dense
from bench.dense import Axis, argmax, axis, cross_entropy, weighted_pixels
from bench.images import cell_index

SHAPES = [
    pytest.param((5, 7), (24, 31), id="up, no integer ratio"),
    pytest.param((6, 4), (48, 32), id="up by 8"),
    pytest.param((9, 11), (5, 6), id="down"),
    pytest.param((1, 6), (13, 9), id="one row"),
    pytest.param((5, 1), (3, 17), id="one column"),
    pytest.param((1, 1), (4, 4), id="one cell"),
    pytest.param((8, 8), (8, 8), id="same size"),
]


@pytest.fixture(autouse=True, params=[2**8, 2**18], ids=["many bands", "one band"])
def numbers_at_once(request, monkeypatch):
    monkeypatch.setattr(dense, "_NUMBERS_AT_ONCE", {"cpu": request.param, "cuda": request.param})


def axes(cells, pixels):
    return tuple(axis(p, extent=c * 4, cells=c, stride=4) for c, p in zip(cells, pixels, strict=True))


def example(cells=(5, 7), pixels=(24, 31), heads=3, classes=4, pictures=3, dtype=torch.float64, seed=0):
    """Logits; labels with ignored pixels, those of the second picture all; weights with a held-out picture."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pictures, heads, classes, *cells, generator=generator, dtype=torch.float64).mul(3).to(dtype)
    labels = torch.randint(0, classes, (pictures, *pixels), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[1] = 255
    weights = torch.rand(heads, pictures, generator=generator, dtype=torch.float64) + 0.5
    weights[1, 0] = 0
    return logits.requires_grad_(), labels, weights


def plain(logits, labels, weights):
    """The losses written down head by head at the size of the labels."""
    losses = []
    for head in range(logits.shape[1]):
        upsampled = functional.interpolate(logits[:, head], size=labels.shape[1:], mode="bilinear", align_corners=False)
        pixels = functional.cross_entropy(upsampled, labels.long(), ignore_index=255, reduction="none")
        divisor = (weights[head][:, None, None] * (labels != 255)).sum()
        losses.append((weights[head][:, None, None] * pixels).sum() / divisor if divisor > 0 else 0 * upsampled.sum())
    return torch.stack(losses)


def losses_and_gradient(loss, logits, upstream=None):
    upstream = torch.linspace(0.5, 2, len(loss), dtype=loss.dtype) if upstream is None else upstream
    return loss.detach(), torch.autograd.grad(loss, logits, upstream)[0]


def apart(seen, wanted):
    return float((seen - wanted).abs().max() / wanted.abs().max())


# --- axes --------------------------------------------------------------------------------------------------


def read(x, at: Axis):
    """What the docstring of `Axis` says, word by word."""
    return (1 - at.weight) * x[at.lower] + at.weight * x[np.minimum(at.lower + 1, at.cells - 1)]


@pytest.mark.parametrize(("cells", "pixels"), [(8, 64), (7, 30), (45, 360), (60, 480), (12, 5), (5, 5), (1, 9), (9, 1)])
def test_an_axis_is_torchs_bilinear_interpolation(cells, pixels):
    x = np.random.default_rng(0).standard_normal(cells)
    at = axis(pixels, extent=cells * 16, cells=cells, stride=16)
    given = torch.from_numpy(x)[None, None]
    wanted = functional.interpolate(given, size=pixels, mode="linear", align_corners=False)[0, 0]
    np.testing.assert_allclose(read(x, at), wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(at.matrix(given[0]) @ torch.from_numpy(x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("offset", [-3.5, 0.0, 2.0, 7.25])
@pytest.mark.parametrize("extent", [97.0, 128.0, 150.0])  # less, as much and more than the map covers
def test_an_axis_reads_coordinates(extent, offset):
    """A map that holds the coordinates of its cells' centres gives the coordinates of the pixels' centres."""
    cells, stride, pixels = 16, 8, 61
    centres = offset + (np.arange(cells) + 0.5) * stride
    wanted = np.clip((np.arange(pixels) + 0.5) * extent / pixels, centres[0], centres[-1])
    at = axis(pixels, extent, cells, stride, offset)
    np.testing.assert_allclose(read(centres, at), wanted, rtol=0, atol=1e-10)
    nearest = np.rint(at.lower + at.weight)
    agreed = nearest == cell_index(pixels, extent, cells, stride, offset)
    assert agreed[np.abs(at.weight - 0.5) > 1e-9].all()


# --- the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "pixels"), SHAPES)
def test_losses_and_gradients_are_those_of_the_plain_transcription(cells, pixels):
    logits, labels, weights = example(cells, pixels)
    seen = losses_and_gradient(cross_entropy(logits, labels, *axes(cells, pixels), weights), logits)
    wanted = losses_and_gradient(plain(logits, labels, weights), logits)
    assert apart(seen[0], wanted[0]) < 1e-12
    assert apart(seen[1], wanted[1]) < 1e-10
    assert seen[1][1].abs().max() == 0  # ignored everywhere
    assert seen[1][0, 1].abs().max() == 0  # held out


def test_the_gradient_is_that_of_the_loss():
    logits, labels, weights = example((3, 2), (5, 7), heads=2, classes=3, pictures=2)
    rows, columns = (axis(p, 40, c, 16, offset=-2) for c, p in (((3, 5), (2, 7))))
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, rows, columns, weights), logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_other_number_formats(dtype, tolerance):
    logits, labels, weights = example(dtype=dtype)
    exact = logits.detach().double().requires_grad_()
    loss = cross_entropy(logits, labels, *axes((5, 7), (24, 31)), weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss, cross_entropy(logits, labels, *axes((5, 7), (24, 31)), weights))
    assert loss.dtype == torch.float32
    seen, wanted = losses_and_gradient(loss, logits), losses_and_gradient(plain(exact, labels, weights), exact)
    assert seen[1].dtype == dtype
    assert apart(seen[0], wanted[0]) < 1e-6  # sums are in float32 or better
    assert apart(seen[1], wanted[1]) < tolerance


def test_several_heads_at_once_as_on_a_gpu(monkeypatch):
    logits, labels, weights = example(heads=5)
    at = axes((5, 7), (24, 31))
    wanted = losses_and_gradient(cross_entropy(logits, labels, *at, weights), logits)
    tasks = dense._tasks
    monkeypatch.setattr(dense, "_NUMBERS_AT_ONCE", {"cpu": 2**11, "cuda": 2 * 4 * 24 * 31})  # bands of few rows
    monkeypatch.setattr(dense, "_tasks", lambda *sizes: tasks(*sizes[:3], torch.device("cuda")))
    assert [heads for _, heads in dense._tasks(1, 5, 4 * 24 * 31, None)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    seen = losses_and_gradient(cross_entropy(logits, labels, *at, weights), logits)
    assert apart(seen[0], wanted[0]) < 1e-12
    assert apart(seen[1], wanted[1]) < 1e-12
    exact = logits.detach()[0]
    assert torch.equal(argmax(exact, *at), torch.cat([argmax(exact[h : h + 1], *at) for h in range(5)]))


def test_logits_far_apart_lose_nothing():
    logits, labels, weights = example(dtype=torch.float32)
    large = (logits.detach() * 1e4).requires_grad_()
    exact = large.detach().double().requires_grad_()
    seen = losses_and_gradient(cross_entropy(large, labels, *axes((5, 7), (24, 31)), weights), large)
    wanted = losses_and_gradient(plain(exact, labels, weights), exact)
    assert apart(seen[0], wanted[0]) < 1e-6
    assert apart(seen[1], wanted[1]) < 1e-3


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_head_has_the_same_bits_alone_and_among_others(threads):
    logits, labels, weights = example(dtype=torch.float32, heads=5)
    at = axes((5, 7), (24, 31))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = losses_and_gradient(cross_entropy(logits, labels, *at, weights), logits, torch.ones(5))
        assert torch.get_num_threads() == threads
        torch.set_num_threads(1)
        for head in range(5):
            one = logits.detach()[:, head : head + 1].requires_grad_()
            loss = cross_entropy(one, labels, *at, weights[head : head + 1])
            alone = losses_and_gradient(loss, one, torch.ones(1))
            assert torch.equal(alone[0][0], together[0][head])
            assert torch.equal(alone[1][:, 0], together[1][:, head])
    finally:
        torch.set_num_threads(before)


def test_any_layout_is_read_alike():
    logits, labels, weights = example(dtype=torch.float32)
    last = logits.detach().permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2).requires_grad_()
    assert not last.is_contiguous()
    at = axes((5, 7), (24, 31))
    seen = losses_and_gradient(cross_entropy(last, labels, *at, weights), last)
    wanted = losses_and_gradient(cross_entropy(logits, labels, *at, weights), logits)
    assert torch.equal(seen[0], wanted[0])
    assert torch.equal(seen[1], wanted[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_head_leaves_the_others_alone(bad):
    logits, labels, weights = example(heads=3)
    at = axes((5, 7), (24, 31))
    wanted = losses_and_gradient(cross_entropy(logits, labels, *at, weights), logits)
    broken = logits.detach().clone()
    broken[2, 1, :, 2, 3] = bad
    broken.requires_grad_()
    loss, gradient = losses_and_gradient(cross_entropy(broken, labels, *at, weights), broken)
    assert not loss[1].isfinite()
    assert not gradient[2, 1].isfinite().all()
    for head in (0, 2):
        assert torch.equal(loss[head], wanted[0][head])
        assert torch.equal(gradient[:, head], wanted[1][:, head])


def test_a_held_out_picture_does_not_count_even_as_nan():
    logits, labels, weights = example()
    at = axes((5, 7), (24, 31))
    wanted = losses_and_gradient(cross_entropy(logits, labels, *at, weights), logits)
    broken = logits.detach().clone()
    broken[0, 1] = float("nan")  # the picture that head 1 does not see
    broken.requires_grad_()
    seen = losses_and_gradient(cross_entropy(broken, labels, *at, weights), broken)
    assert torch.equal(seen[0], wanted[0])
    assert torch.equal(seen[1], wanted[1])


@pytest.mark.parametrize("cause", ["labels", "weights"])
def test_a_head_without_pixels_has_loss_and_gradient_0(cause):
    logits, labels, weights = example()
    if cause == "labels":
        labels[:] = 255
    else:
        weights[2] = 0
    loss, gradient = losses_and_gradient(cross_entropy(logits, labels, *axes((5, 7), (24, 31)), weights), logits)
    assert loss[2] == 0
    assert gradient[:, 2].abs().max() == 0
    assert bool(loss[0] == 0) == (cause == "labels")


def test_parts_of_a_batch_add_up():
    logits, labels, weights = example()
    at = axes((5, 7), (24, 31))
    wanted = losses_and_gradient(cross_entropy(logits, labels, *at, weights), logits)
    total = weighted_pixels(labels, weights)
    parts = [slice(0, 2), slice(2, 3)]
    assert torch.allclose(total, sum(weighted_pixels(labels[p], weights[:, p]) for p in parts), rtol=1e-14)
    loss = sum(cross_entropy(logits[p], labels[p], *at, weights[:, p], total) for p in parts)
    seen = losses_and_gradient(loss, logits)
    assert apart(seen[0], wanted[0]) < 1e-14
    assert apart(seen[1], wanted[1]) < 1e-14


def test_without_gradients_the_loss_is_the_same():
    logits, labels, weights = example(dtype=torch.float32)
    at = axes((5, 7), (24, 31))
    wanted = cross_entropy(logits, labels, *at, weights)
    assert wanted.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = cross_entropy(logits, labels, *at, weights)
        assert not loss.requires_grad
        assert torch.equal(loss, wanted)


# --- predictions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "pixels"), SHAPES)
def test_argmax_is_that_of_the_upsampled_logits(cells, pixels):
    logits = example(cells, pixels, heads=3, classes=5)[0].detach()
    wanted = functional.interpolate(logits[0], size=pixels, mode="bilinear", align_corners=False).numpy().argmax(1)
    with torch.inference_mode():
        seen = argmax(logits[0], *axes(cells, pixels))
    assert seen.dtype == torch.uint8
    np.testing.assert_array_equal(seen, wanted)


def test_the_smaller_class_wins_a_tie():
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 2:] = 1  # classes 2 and 3 alike
    assert argmax(logits, *axes((2, 2), (5, 6))).unique().tolist() == [2]


# --- what does not fit together ----------------------------------------------------------------------------


def test_shapes_that_do_not_fit_together():
    logits, labels, weights = example()
    rows, columns = axes((5, 7), (24, 31))
    with pytest.raises(ValueError, match="5×7 cells need axes that read as many, got 7×5"):
        cross_entropy(logits, labels, columns, rows, weights)
    with pytest.raises(ValueError, match="need labels"):
        cross_entropy(logits, labels[:, :-1], rows, columns, weights)
    with pytest.raises(ValueError, match="need labels"):
        cross_entropy(logits, labels, rows, columns, weights.T[:2])
    with pytest.raises(ValueError, match="at most 255 classes, got 256"):
        argmax(torch.zeros(1, 256, 5, 7), rows, columns)


def test_a_label_beyond_the_classes_is_an_error():
    logits, labels, weights = example(classes=4)
    labels[2, 3, 3] = 4
    with pytest.raises(RuntimeError, match="out of bounds"):
        cross_entropy(logits, labels, *axes((5, 7), (24, 31)), weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("cells", "pixels"), SHAPES)
def test_a_gpu_agrees(cells, pixels):
    logits, labels, weights = example(cells, pixels)
    at = axes(cells, pixels)
    wanted = losses_and_gradient(cross_entropy(logits, labels, *at, weights), logits)
    there = logits.detach().cuda().requires_grad_()
    loss = cross_entropy(there, labels.cuda(), *at, weights.cuda())
    upstream = torch.linspace(0.5, 2, len(loss), dtype=loss.dtype).cuda()
    seen = losses_and_gradient(loss, there, upstream)
    assert apart(seen[0].cpu(), wanted[0]) < 1e-12
    assert apart(seen[1].cpu(), wanted[1]) < 1e-10
    assert torch.equal(argmax(there.detach()[0], *at).cpu(), argmax(logits.detach()[0], *at))
