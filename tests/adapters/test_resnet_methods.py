"""The ResNet-50 methods, on files laid out as their authors' code writes them, with a small body."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from bench import registry
from bench.adapters import _resnet, infomin, instdisc, moco_v2, supervised, swav
from bench.adapters._resnet_card import ResNetOptions
from bench.backbone import Backbone
from bench.contracts import Adapter
from bench.errors import CheckpointError
from bench.networks.resnet import DilatedResNet
from bench.records import AdapterRequest, MethodCard
from bench.weights import resolve, state_sha256

CARDS = {module.CARD.name: module.CARD for module in (infomin, instdisc, moco_v2, supervised, swav)}
DILATIONS = {8: [False, True, True], 16: [False, False, True], 32: [False, False, False]}

State = dict[str, torch.Tensor]


def narrow_resnet(output_stride: int = 32) -> ResNet:
    """torchvision's ResNet-50 with fewer blocks, an eighth as wide inside, without the classifier."""
    net = ResNet(Bottleneck, [1, 1, 2, 2], width_per_group=8, replace_stride_with_dilation=DILATIONS[output_stride])
    net.fc = nn.Identity()
    return net.eval()


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(_resnet, "dilated_resnet", lambda arch, stride: DilatedResNet(narrow_resnet(), stride))


@pytest.fixture(scope="module")
def original() -> ResNet:
    torch.manual_seed(0)
    return narrow_resnet(8)


def body(net: nn.Module, prefix: str, *, counters: bool = True) -> State:
    """The state under a prefix; without `num_batches_tracked` as torch 0.3 wrote it."""
    state = net.state_dict()
    return {prefix + k: v for k, v in state.items() if counters or not k.endswith("num_batches_tracked")}


def zeros(**shapes: tuple[int, ...]) -> State:
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def torchvision_file(net: nn.Module) -> object:
    return {**body(net, ""), **zeros(fc__weight=(1000, 2048), fc__bias=(1000,))}


def torchvision_file_of_2017(net: nn.Module) -> object:
    return {**body(net, "", counters=False), **zeros(fc__weight=(1000, 2048), fc__bias=(1000,))}


def moco_state(net: nn.Module, prefix: str) -> State:
    """Query and key encoder with their heads, and the queue; the hidden layer is made small."""
    head = {
        f"{prefix}{encoder}.fc.{name}": torch.zeros(shape)
        for encoder in ("encoder_q", "encoder_k")
        for name, shape in (("0.weight", (8, 8)), ("0.bias", (8,)), ("2.weight", (128, 2048)), ("2.bias", (128,)))
    }
    queue = {f"{prefix}queue": torch.zeros(128, 16), f"{prefix}queue_ptr": torch.zeros(1)}
    encoders = {**body(net, f"{prefix}encoder_q."), **body(narrow_resnet(), f"{prefix}encoder_k.")}
    return {**encoders, **head, **queue}


def moco_file(net: nn.Module) -> object:
    return {"epoch": 800, "arch": "resnet50", "state_dict": moco_state(net, "module."), "optimizer": {"state": {}}}


def moco_file_of_one_gpu(net: nn.Module) -> object:
    return {"epoch": 800, "arch": "resnet50", "state_dict": moco_state(net, "")}


def swav_file(net: nn.Module) -> object:
    head = {"0.weight": (8, 8), "0.bias": (8,), "1.running_mean": (8,), "3.weight": (128, 8), "3.bias": (128,)}
    heads = {f"module.projection_head.{name}": torch.zeros(shape) for name, shape in head.items()}
    return {**body(net, "module."), **heads, "module.prototypes.weight": torch.zeros(3000, 128)}


def swav_training_file(net: nn.Module) -> object:
    return {"epoch": 800, "state_dict": swav_file(net), "optimizer": {}}


def infomin_file(net: nn.Module) -> object:
    heads = {"head.0.weight": (8, 8), "head.2.weight": (128, 2048), "head_jig.fc2.weight": (128, 1152)}
    state = {f"module.{name}": torch.zeros(shape) for name, shape in heads.items()}
    return {"model": {**body(net, "module.encoder."), **state}, "contrast": zeros(memory=(4, 128)), "epoch": 800}


def pycontrast_file(net: nn.Module) -> object:
    return {"model": {**body(net, "module.encoder."), "module.head.0.weight": torch.zeros(128, 2048)}, "epoch": 200}


class NCEAverage(nn.Module):
    """Stands for the memory bank that the original file pickles as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.rand(10, 128))


def lemniscate_file(net: nn.Module) -> object:
    state = {**body(net, "module.", counters=False), **zeros(module__fc__weight=(128, 2048), module__fc__bias=(128,))}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "lemniscate": NCEAverage(), "best_prec1": 46.8}


def vissl_file(prefix: str) -> Callable[[nn.Module], object]:
    return lambda net: {"model_state_dict": body(net, prefix)}


FILES: dict[str, tuple[str, str, Callable[[nn.Module], object]]] = {
    "supervised": ("supervised", "imagenet1k-v1", torchvision_file),
    "supervised, 2017": ("supervised", "imagenet1k-v1-2017", torchvision_file_of_2017),
    "moco": ("moco_v2", "800ep", moco_file),
    "moco, 200 epochs": ("moco_v2", "200ep", moco_file),
    "moco, one GPU": ("moco_v2", "800ep", moco_file_of_one_gpu),
    "swav": ("swav", "800ep", swav_file),
    "swav, training": ("swav", "800ep", swav_training_file),
    "infomin": ("infomin", "800ep", infomin_file),
    "infomin, second run": ("infomin", "800ep-run2", infomin_file),
    "lemniscate": ("instdisc", "lemniscate", lemniscate_file),
    "lemniscate, update": ("instdisc", "lemniscate-update", lemniscate_file),
    "vissl": ("instdisc", "vissl", vissl_file("_feature_blocks.")),
    "vissl, bare": ("instdisc", "vissl", vissl_file("")),
    "pycontrast": ("instdisc", "pycontrast", pycontrast_file),
}


def build(card: MethodCard, spec: str | None, folder: Path, output_stride: Any = 8, **how: Any) -> Backbone:
    checkpoint = resolve(card, spec, weights_dir=folder, **how)
    options = ResNetOptions(output_stride=output_stride)
    adapter = registry.load(card.factory)(AdapterRequest(card=card, checkpoint=checkpoint, options=options))
    assert isinstance(adapter, Backbone)
    assert isinstance(adapter, Adapter)
    return adapter.eval()


def released(name: str, spec: str) -> tuple[MethodCard, str]:
    """The card of a method without hashes, which a look-alike cannot have, and the file name of a release."""
    card = CARDS[name]
    unhashed = tuple(replace(one, sha256="", md5="") for one in card.checkpoints)
    return replace(card, checkpoints=unhashed), next(one.filename for one in unhashed if one.name == spec)


def reference_maps(net: ResNet, x: torch.Tensor) -> State:
    maps = {}
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = maps[name] = getattr(net, name)(x)
    return maps


OWN_FILES = ("supervised", "moco, one GPU", "swav", "infomin", "lemniscate")


@pytest.mark.parametrize(("kind", "own"), [*((kind, False) for kind in FILES), *((kind, True) for kind in OWN_FILES)])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_files_in_the_official_layouts(kind, own, original, tmp_path):
    name, spec, make = FILES[kind]
    card, filename = released(name, spec)
    torch.save(make(original), tmp_path / filename, _use_new_zipfile_serialization="lemniscate" not in kind)
    adapter = build(card, str(tmp_path / filename) if own else spec, tmp_path)
    pictures = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        inputs = adapter.preprocess(pictures)
        seen, wanted = adapter(inputs, ["layer2", "layer4"]), reference_maps(original, inputs)
    assert set(seen) == {"layer2", "layer4"}
    for tap, values in seen.items():
        assert torch.equal(values, wanted[tap])
        assert values.shape == (2, adapter.taps[tap].channels, 8, 12)
    counters = [key for key in original.state_dict() if key.endswith("num_batches_tracked")]
    assert adapter.account["missing"] == (counters if make in (torchvision_file_of_2017, lemniscate_file) else [])
    assert adapter.account["taken"] == len(original.state_dict()) - len(adapter.account["missing"])


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_strides(output_stride, original, tmp_path):
    card, filename = released("swav", "800ep")
    torch.save(swav_file(original), tmp_path / filename)
    adapter = build(card, "800ep", tmp_path, output_stride)
    wanted = narrow_resnet(output_stride)
    wanted.load_state_dict(original.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = adapter(x, list(adapter.taps))
        assert torch.equal(maps["layer4"], reference_maps(wanted, x)["layer4"])
    assert adapter.pad_to == adapter.taps["layer4"].stride == output_stride
    assert {tap: 64 // m.shape[-1] for tap, m in maps.items()} == {t.name: t.stride for t in adapter.taps.values()}


def test_moco_file_given_to_another_method_is_detected(original, tmp_path):
    torch.save(moco_file(original), tmp_path / "moco.pth.tar")
    adapter = build(CARDS["infomin"], str(tmp_path / "moco.pth.tar"), tmp_path)
    assert (adapter.account["entry"], adapter.account["prefix"]) == ("state_dict", "module.encoder_q.")


@pytest.mark.parametrize("name", CARDS)
def test_another_architecture_is_refused(name, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv3\.weight.*timm's resnet18: give them") as error:
        build(CARDS[name], str(tmp_path / "r18.pth"), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("more", ["layer1.0.se.fc1.weight", "layer3.2.conv1.weight", "bn1.alpha"])
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("name", CARDS)
def test_a_file_that_holds_more_than_the_network_is_refused(original, name, classes, more, tmp_path, monkeypatch):
    """With torchvision's classifier it is in the layout of `supervised`, with another in none."""
    monkeypatch.setattr(_resnet, "_likely", lambda state: "")
    state = {**body(original, ""), more: torch.ones(4, 4), "fc.weight": torch.zeros(classes, 2048)}
    torch.save({**state, "fc.bias": torch.zeros(classes)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth does not fit the network: .*1 unexpected: {more}"):
        build(CARDS[name], str(tmp_path / "x.pth"), tmp_path)


@pytest.mark.parametrize(("name", "red"), [("swav", "0.228"), ("infomin", "0.229")])
def test_the_normalisation_of_a_foreign_file_is_said(original, name, red, tmp_path, caplog):
    torch.save({**body(original, ""), "fc.weight": torch.zeros(10, 2048)}, tmp_path / "x.pth")
    with caplog.at_level(logging.INFO):
        adapter = build(CARDS[name], str(tmp_path / "x.pth"), tmp_path)
    assert f"normalised as {name} has it (mean 0.485, 0.456, 0.406, standard deviation {red}, 0.224" in caplog.text
    assert adapter.account["normalised_as"]["name"] == name


def test_released_name_with_another_methods_file_is_refused(original, tmp_path):
    card, filename = released("swav", "800ep")
    torch.save(moco_file(original), tmp_path / filename)
    with pytest.raises(CheckpointError, match=r"prototypes.*module\.encoder_q\."):
        build(card, "800ep", tmp_path)


@pytest.mark.parametrize("name", CARDS)
def test_random_weights_are_a_function_of_the_seed(name, tmp_path):
    one, same, other = (build(CARDS[name], "random", tmp_path, seed=seed) for seed in (0, 0, 1))
    assert state_sha256(one) == state_sha256(same) != state_sha256(other)
    assert one.account == {}


def test_maps_are_differentiable(tmp_path):
    adapter = build(CARDS["supervised"], "random", tmp_path)
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    adapter(x, ["layer4"])["layer4"].square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in adapter.parameters())


def test_only_swav_has_a_standard_deviation_of_its_own(tmp_path):
    std = {name: build(card, "random", tmp_path).std for name, card in CARDS.items()}
    assert std.pop("swav") == (0.228, 0.224, 0.225)
    assert set(std.values()) == {(0.229, 0.224, 0.225)}


def test_supervised_is_torchvisions_first_recipe():
    v1, old = supervised.CARD.checkpoints
    assert v1.url == torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url
    for one in (v1, old):
        assert one.url.endswith(f"-{one.sha256}.pth")
        assert len(one.sha256) == 8


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cards_say_where_everything_is_from(card):
    for one in card.checkpoints:
        assert one.licence
        assert one.training_data
        assert "not opened" in one.verified
        assert one.url.removesuffix("?dl=1").endswith(one.filename)
    assert len({one.filename for one in card.checkpoints}) == len(card.checkpoints)
    assert "arXiv" in card.paper
