"""Colorization: the reference's maps, its released file, the lightness it reads, and where its cells lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.adapters import colorization
from bench.adapters._colorization import ColorizationNetwork, lightness
from bench.backbone import Backbone
from bench.errors import CheckpointError, MismatchError
from bench.records import AdapterRequest, MethodCard
from bench.testing import check_adapter
from bench.weights import resolve, state_sha256

GOLDEN = Path(__file__).parents[1] / "golden"
CARD: MethodCard = colorization.CARD
SAMPLING = {
    "model1": (4, 2, 2), "model2": (4, 1, 2), "model3": (8, 1, 1), "model4": (16, 1, 1), "model5": (16, 1, 1),
    "model6": (16, 1, 1), "model7": (16, 1, 1), "model8_5": (8, 2, 2),
}  # fmt: skip
"""How the golden maps were thinned out, and their names: its `model8` is the 313 colours."""


def build(spec: str | None, folder: Path, seed: int = 0) -> Backbone:
    checkpoint = resolve(CARD, spec, weights_dir=folder, seed=seed)
    adapter = colorization.build(AdapterRequest(card=CARD, checkpoint=checkpoint, options=CARD.options()))
    assert isinstance(adapter, Backbone)
    return adapter.eval()


@pytest.fixture(scope="module")
def state(golden_state):
    return golden_state("colorization")


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "colorization.npz")


def test_maps_and_colours_are_the_references(state, golden):
    network = ColorizationNetwork().double().eval()
    network.load_state_dict(state)
    inputs = (torch.from_numpy(golden["input"]).double() - 50) / 100
    with torch.no_grad():
        maps = network(inputs, [tap.name for tap in network.taps])
        logits = network.model8[-1](maps["model8"])
        colours = network.model_out(logits.softmax(1))
        colours = 110 * functional.interpolate(colours, scale_factor=4, mode="bilinear", align_corners=False)
    maps["model8_5"] = maps.pop("model8")
    seen = [(maps[name][:, ::c, ::y, ::x], golden[name]) for name, (c, y, x) in SAMPLING.items()]
    seen += [(logits[:, ::4, ::2, ::2], golden["model8"]), (colours[:, :, ::2, ::2], golden["ab"])]
    for values, wanted in seen:
        assert np.abs(values.numpy() - wanted).max() <= 1e-12 * np.abs(wanted).max()
    for name in SAMPLING:
        assert np.linalg.norm(maps[name]) == pytest.approx(golden[f"{name}_stats"][2], rel=1e-12)


@pytest.mark.parametrize("counters", [True, False], ids=["as written", "before num_batches_tracked"])
def test_a_released_file_is_loaded_key_for_key(counters, state, golden, tmp_path):
    held = {key: value for key, value in state.items() if counters or not key.endswith("num_batches_tracked")}
    torch.save(held, tmp_path / "mine.pth")
    adapter = build(str(tmp_path / "mine.pth"), tmp_path)
    assert list(adapter.body.state_dict()) == list(state)
    assert adapter.account["taken"] == len(held) == (82 if counters else 75)
    assert adapter.account["missing"] == [key for key in state if key not in held]
    assert adapter.account["dropped"] == adapter.account["outside"] == []
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 32_236_011
    with torch.no_grad():
        maps = adapter((torch.from_numpy(golden["input"]) - 50) / 100, ["model3", "model7"])
    for name, values in maps.items():
        wanted = golden[name]
        assert np.abs(values[:, :: SAMPLING[name][0]].numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_lightness_is_that_of_cie_lab():
    color = pytest.importorskip("skimage.color", reason="scikit-image is not installed")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (3, 64, 512), np.uint8)
    picture[:, 0, :256] = np.arange(256)
    picture[:, 1:9] //= 20  # the linear part of both curves
    wanted = color.rgb2lab(picture.transpose(1, 2, 0))[..., 0]
    seen = lightness(torch.from_numpy(picture)[None])
    assert seen.dtype == torch.float32
    assert np.abs(seen[0, 0].numpy() - wanted).max() < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lightness(torch.from_numpy(picture)[None]), seen)


def test_the_network_is_given_the_lightness_less_50_by_100(tmp_path):
    pictures = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0]], dtype=torch.uint8).view(3, 3, 1, 1)
    seen = build("random", tmp_path).preprocess(pictures)
    assert seen.shape == (3, 1, 1, 1)
    torch.testing.assert_close(seen.flatten(), torch.tensor([-0.5, 0.5, 0.0324]), rtol=0, atol=1e-4)


def test_random_weights_are_a_function_of_the_seed_and_keep_the_contract(tmp_path):
    one, same, other = (build("random", tmp_path, seed) for seed in (0, 0, 1))
    assert state_sha256(one) == state_sha256(same) != state_sha256(other)
    check_adapter(one)
    assert tuple(one.taps) == CARD.taps
    assert (one.default_tap, one.pad_to) == (CARD.default_tap, 8)
    with pytest.raises(MismatchError, match=r"'model9' is not given; there are model1, .*model8"):
        one(torch.zeros(1, 1, 16, 16), ["model9"])


def test_the_picture_is_not_drowned_at_random(tmp_path):
    """Cells of a map that hardly differ would make a floor of rounding errors."""
    adapter = build("random", tmp_path)
    pictures = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        deepest = adapter(adapter.preprocess(pictures), ["model7"])["model7"][..., 4:-4, 4:-4]
    assert deepest.std((2, 3)).mean() > 0.01 * deepest.abs().max()


def test_cells_lie_where_the_taps_say(tmp_path):
    """What a cell sees is centred on its first pixel, (stride - 1) / 2 before its own centre, as in every network whose
    odd kernels are padded by half; the cells of `model8` halve those of `model7`."""
    network = build("random", tmp_path).body.double()
    for parameter in network.parameters():
        torch.nn.init.ones_(parameter)  # no sum cancels and no ReLU closes: what can be seen is seen
    inputs = torch.rand(1, 1, 8, 400, dtype=torch.float64, requires_grad=True)
    maps = network(inputs, [tap.name for tap in network.taps])
    for tap in network.taps:
        off = []
        for cell in (int(200 / tap.stride), int(200 / tap.stride) + 1):
            (seen,) = torch.autograd.grad(maps[tap.name][..., cell].sum(), inputs, retain_graph=True)
            columns = seen.abs().sum((0, 1, 2)).nonzero().flatten()
            off.append((columns[0] + columns[-1] + 1).item() / 2 - (tap.offset + (cell + 0.5) * tap.stride))
        step = 8 if tap.name == "model8" else tap.stride  # of its two kinds of cells, on average
        assert np.mean(off) == -(step - 1) / 2


BAD = {
    "siggraph17": ("model1.0.weight", (64, 4, 3, 3)),
    "half as wide": ("model5.0.weight", (256, 512, 3, 3)),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_networks_are_refused(kind, tmp_path):
    key, shape = BAD[kind]
    held = {**ColorizationNetwork().state_dict(), key: torch.zeros(shape)}
    torch.save(held, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"of another shape: .*of this architecture") as error:
        build(str(tmp_path / "other.pth"), tmp_path)
    assert f"{key} {shape}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_another_method_is_named(tmp_path):
    torch.save({"module.prototypes.weight": torch.zeros(3000, 128)}, tmp_path / "x.pth.tar")
    path = tmp_path / "x.pth.tar"
    with pytest.raises(CheckpointError, match=rf"looks like a swav file .*--method swav@{path}") as error:
        build(str(path), tmp_path)
    assert "\n" not in str(error.value)


def test_the_card_says_where_everything_is_from():
    (released,) = CARD.checkpoints
    assert released.url.endswith(released.filename)
    assert f"-{released.sha256}.pth" in released.url
    assert "not opened" in released.verified
