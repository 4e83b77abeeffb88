"""CMP: the reference's maps of both encoders, files in both layouts, and where the cells lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from bench.adapters import cmp
from bench.adapters._cmp import AlexNetEncoder, ResNetEncoder
from bench.backbone import Backbone
from bench.errors import CheckpointError, DownloadError, MismatchError
from bench.networks.resnet import dilated_resnet
from bench.records import AdapterRequest, MethodCard
from bench.testing import check_adapter
from bench.weights import resolve, state_sha256

GOLDEN = Path(__file__).parents[1] / "golden"
CARD: MethodCard = cmp.CARD


@dataclass(frozen=True, kw_only=True)
class Known:
    """An encoder's golden file, how its maps were thinned out there, and its size."""

    file: str
    prefix: str = ""
    sampling: dict[str, tuple[int, int, int]]
    parameters: int
    tensors: int
    default_tap: str
    stride: int


RESNET_MAPS = {"layer1": (8, 2, 2), "layer2": (8, 1, 1), "layer3": (16, 1, 1), "layer4": (32, 1, 1), "conv5": (4, 1, 1)}
ALEXNET_MAPS = {
    "conv1": (4, 2, 2), "conv2": (4, 1, 1), "conv3": (4, 1, 1), "conv4": (4, 1, 1), "conv5": (4, 1, 1),
    "pool5": (4, 1, 1), "fc6": (16, 1, 1), "fc7": (16, 1, 1), "conv8": (1, 1, 1),
}  # fmt: skip
ALEXNET_MAPS_8X = {
    "conv1": (8, 4, 4), "conv2": (8, 2, 2), "conv3": (8, 1, 1), "conv4": (8, 1, 1), "conv5": (8, 1, 1),
    "pool5": (8, 1, 1), "fc6": (128, 1, 1), "fc7": (128, 1, 1), "conv8": (8, 1, 1),
}  # fmt: skip
ALEXNET = Known(
    file="cmp_alexnet",
    prefix="x32_",
    sampling=ALEXNET_MAPS,
    parameters=31_037_760,
    tensors=51,
    default_tap="conv5",
    stride=32,
)
ARCHS = {
    "resnet50": Known(
        file="cmp_resnet50", sampling=RESNET_MAPS, parameters=24_032_576, tensors=320, default_tap="layer4", stride=8
    ),
    "alexnet": ALEXNET,
    "alexnet_8x": replace(ALEXNET, prefix="x8_", sampling=ALEXNET_MAPS_8X, stride=8),
}


def build(spec: str | None, folder: Path, seed: int = 0, **options: Any) -> Backbone:
    checkpoint = resolve(CARD, spec, weights_dir=folder, seed=seed)
    adapter = cmp.build(AdapterRequest(card=CARD, checkpoint=checkpoint, options=CARD.options(**options)))
    assert isinstance(adapter, Backbone)
    return adapter.eval()


@pytest.fixture(scope="module")
def states(golden_state):
    return {name: golden_state(name) for name in ("cmp_resnet50", "cmp_alexnet")}


def converted_file(state: dict[str, torch.Tensor]) -> object:
    """What the authors' conversion writes; by torch 0.4, so without `num_batches_tracked`."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def training_file(state: dict[str, torch.Tensor]) -> object:
    """What their training writes: the image encoder beside the two other parts of the model."""
    others = {f"module.{name}.weight": torch.zeros(2, 2) for name in ("flow_encoder.features.0", "flow_decoder.fc")}
    encoder = {f"module.image_encoder.{key}": value for key, value in state.items()}
    return {"step": 42000, "state_dict": {**encoder, **others}, "optimizer": {"state": {}}}


@pytest.mark.parametrize("arch", ARCHS)
def test_maps_are_the_references(arch, states):
    known = ARCHS[arch]
    encoder = ResNetEncoder() if arch == "resnet50" else AlexNetEncoder(known.stride)
    encoder.double().eval().load_state_dict(states[known.file])
    golden = np.load(GOLDEN / f"{known.file}.npz")
    with torch.no_grad():
        maps = encoder(torch.from_numpy(golden["input"]).double(), [tap.name for tap in encoder.taps])
    assert list(maps) == list(known.sampling)
    for name, (c, y, x) in known.sampling.items():
        wanted, values = golden[known.prefix + name], maps[name]
        assert np.abs(values[:, ::c, ::y, ::x].numpy() - wanted).max() <= 1e-12 * np.abs(wanted).max()
        assert np.linalg.norm(values) == pytest.approx(golden[f"{known.prefix}{name}_stats"][2], rel=1e-12)


@pytest.mark.parametrize("make", [converted_file, training_file])
@pytest.mark.parametrize("arch", ["resnet50", "alexnet"])
def test_files_in_the_official_layouts_say_their_encoder(arch, make, states, tmp_path):
    known = ARCHS[arch]
    released = next(one for one in CARD.checkpoints if one.name == arch)
    torch.save(make(states[known.file]), tmp_path / released.filename)
    adapter = build(arch, tmp_path)
    state = states[known.file]
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert list(adapter.body.state_dict()) == list(state)
    assert adapter.account["missing"] == (counters if make is converted_file else [])
    assert adapter.account["taken"] == known.tensors - len(adapter.account["missing"])
    assert adapter.account["dropped"] == []
    assert len(adapter.account["outside"]) == (0 if make is converted_file else 2)
    golden = np.load(GOLDEN / f"{known.file}.npz")
    with torch.no_grad():
        seen = adapter(torch.from_numpy(golden["input"]), [known.default_tap])[known.default_tap]
    wanted = golden[known.prefix + known.default_tap]
    assert (
        np.abs(seen[:, :: known.sampling[known.default_tap][0]].numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_random_weights_are_a_function_of_the_seed_and_keep_the_contract(arch, tmp_path):
    one, same, other = (build("random", tmp_path, seed, arch=arch) for seed in (0, 0, 1))
    assert state_sha256(one) == state_sha256(same) != state_sha256(other)
    known = ARCHS[arch]
    assert sum(parameter.numel() for parameter in one.parameters()) == known.parameters
    assert (one.default_tap, one.pad_to) == (known.default_tap, known.stride)
    assert set(one.taps) == set(known.sampling) <= set(CARD.taps)
    check_adapter(one)
    with pytest.raises(MismatchError, match="'layer5' is not given; there are "):
        one(torch.zeros(1, 3, 32, 32), ["layer5"])


def test_the_released_architecture_is_the_default(tmp_path):
    assert build("random", tmp_path).default_tap == CARD.default_tap == "layer4"


def test_every_convolution_of_a_dilated_stage_is_dilated_alike():
    encoder = ResNetEncoder()
    for stage, dilation in ((encoder.layer3, 2), (encoder.layer4, 4)):
        assert {block.conv2.dilation for block in stage} == {(dilation, dilation)}
        assert {block.conv2.stride for block in stage} == {(1, 1)}
    other = dilated_resnet("resnet50", 8)
    other.load_state_dict({key: value for key, value in encoder.state_dict().items() if not key.startswith("conv5")})
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        seen, others = encoder.eval()(inputs, ["layer2", "layer3"]), other.eval()(inputs, ["layer2", "layer3"])
    assert torch.equal(seen["layer2"], others["layer2"])
    assert not torch.allclose(seen["layer3"], others["layer3"], rtol=0.01)


def test_pictures_are_normalised_as_by_the_others(tmp_path):
    """0 … 255 less 123.675, divided by 58.395 in red: ImageNet's constants in other units."""
    adapter = build("random", tmp_path)
    assert (adapter.mean, adapter.std, adapter.scale) == (
        pytest.approx((123.675, 116.28, 103.53)),
        pytest.approx((58.395, 57.12, 57.375)),
        1.0,
    )
    pictures = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    wanted = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(pictures / 255)
    torch.testing.assert_close(adapter.preprocess(pictures), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_cells_lie_where_the_taps_say(arch, tmp_path):
    """A picture moved by a cell gives the map moved by a cell, and what a cell sees is centred on its first pixel."""
    encoder = build("random", tmp_path, arch=arch).body.double()
    deepest = encoder.taps[-1]
    stride = int(deepest.stride)
    inputs = torch.rand(1, 3, 8, 1024, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here, moved = (
            encoder(picture, [deepest.name])[deepest.name] for picture in (inputs, inputs.roll(stride, dims=-1))
        )
    inner = slice(512 // stride - 1, 512 // stride + 2)
    torch.testing.assert_close(moved.roll(-1, dims=-1)[..., inner], here[..., inner], rtol=0, atol=1e-9)

    for parameter in encoder.parameters():
        torch.nn.init.ones_(parameter)  # no sum cancels and no ReLU closes
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.MaxPool2d):  # a mean over the same window sees all of it
            mean = torch.nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            encoder.set_submodule(name, mean)
    inputs.requires_grad_(True)
    maps = encoder(inputs, [tap.name for tap in encoder.taps])
    for tap in encoder.taps:
        cell = int(512 / tap.stride)
        (seen,) = torch.autograd.grad(maps[tap.name][..., cell].sum(), inputs, retain_graph=True)
        columns = seen.abs().sum((0, 1, 2)).nonzero().flatten()
        assert (columns[0] + columns[-1]).item() / 2 == tap.offset + cell * tap.stride


@pytest.mark.parametrize(("held", "asked"), [("alexnet", "resnet50"), ("resnet50", "alexnet_8x")])
def test_the_file_of_the_other_encoder_is_refused(held, asked, states, tmp_path):
    torch.save(converted_file(states[ARCHS[held].file]), tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError, match=rf"x\.pth\.tar holds CMP's {held}, not {asked}: drop --set cmp\.arch"):
        build(str(tmp_path / "x.pth.tar"), tmp_path, arch=asked)
    other = next(one for one in CARD.checkpoints if one.name != held)
    (tmp_path / "x.pth.tar").rename(tmp_path / other.filename)
    with pytest.raises(CheckpointError, match=rf"looks like a cmp file \(as of cmp@{held}\)") as error:
        build(other.name, tmp_path, arch="auto" if held == "resnet50" else held)
    assert "\n" not in str(error.value)


def test_a_file_of_another_method_is_named(tmp_path):
    state = {f"module.{key}": value for key, value in torchvision.models.resnet50().state_dict().items()}
    torch.save({**state, "module.prototypes.weight": torch.zeros(3000, 128)}, tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError, match=r"missing: conv5\.weight, conv5\.bias.*looks like a swav file"):
        build(str(tmp_path / "x.pth.tar"), tmp_path)


def test_a_file_that_is_not_there_says_where_to_get_it(tmp_path):
    with pytest.raises(DownloadError, match=r"resnet50_yfcc_voc_16gpu_42k.*1Kx-OIcr.* and put it at .*pth\.tar"):
        build(None, tmp_path)


def test_the_card_says_where_everything_is_from():
    for one in CARD.checkpoints:
        assert one.filename in one.manual
        assert "not opened" in one.verified
        assert one.licence == "MIT"
