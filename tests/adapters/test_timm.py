from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import requests
import timm as timm_library
import torch
import torchvision

from bench.adapters import _timm, timm
from bench.adapters.timm import TimmOptions
from bench.backbone import Backbone
from bench.errors import CheckpointError, DownloadError, FeatureError, MismatchError, SettingError, UnknownNameError
from bench.records import AdapterRequest
from bench.weights import resolve, state_sha256


def build(name: str, spec: str | None = "random", output_stride: Any = "auto", seed: int = 0) -> Backbone:
    checkpoint = resolve(timm.CARD, spec, weights_dir=Path(), seed=seed, argument=name)
    options = TimmOptions(output_stride=output_stride)
    adapter = timm.build(AdapterRequest(card=timm.CARD, checkpoint=checkpoint, argument=name, options=options))
    assert isinstance(adapter, Backbone)
    assert adapter.default_tap == "last"
    return adapter.eval()


@pytest.mark.parametrize(
    ("name", "patch", "prefixes", "depth"),
    [("test_vit", 16, 1, 6), ("vit_small_patch14_reg4_dinov2", 14, 5, 12), ("test_vit3", 16, 1, 9)],
    ids=["class token", "class token and registers", "a register alone"],
)
def test_transformers_give_their_patch_tokens_at_any_size(name, patch, prefixes, depth):
    adapter = build(name)
    assert adapter.body.num_prefix_tokens == prefixes
    assert [tap for tap in adapter.taps if tap != "last"] == [f"block{i}" for i in range(1, depth + 1)]
    assert adapter.pad_to == adapter.taps["last"].stride == patch
    x = torch.randn(2, 3, 3 * patch, 5 * patch)
    with torch.no_grad():
        maps = adapter(x, ["last", "block2", f"block{depth}"])
        tokens = adapter.body.forward_features(x)[:, prefixes:]
    wanted = tokens.transpose(1, 2).reshape(2, -1, 3, 5)
    torch.testing.assert_close(maps["last"], wanted, rtol=0, atol=1e-5)
    assert torch.equal(maps[f"block{depth}"], maps["last"])
    assert maps["block2"].shape == maps["last"].shape
    assert not torch.allclose(maps["block2"], maps["last"])


def test_resnet50_equals_torchvisions_dilated_one():
    adapter = build("resnet50")
    reference = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    reference.load_state_dict(adapter.body.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        maps = adapter(x, ["last", "stage1"])
        wanted = torch.nn.Sequential(*list(reference.children())[:-2])(x)
    torch.testing.assert_close(maps["last"], wanted, rtol=1e-4, atol=1e-5)
    assert list(adapter.taps) == ["stem", "stage1", "stage2", "stage3", "stage4", "last"]
    assert adapter.pad_to == 8


@pytest.mark.parametrize(
    ("name", "output_stride", "deepest"),
    [
        ("test_convnext", "auto", 8),
        ("test_convnext", 16, 16),
        ("test_resnet", 32, 32),
        ("mobilenetv3_small_100", "auto", 32),
        ("swin_tiny_patch4_window7_224", "auto", 32),
    ],
)
def test_taps_say_what_the_maps_are(name, output_stride, deepest):
    adapter = build(name, output_stride=output_stride)
    assert adapter.taps["last"].stride == deepest
    height, width = 2 * adapter.pad_to, 3 * adapter.pad_to
    with torch.no_grad():
        maps = adapter(torch.randn(2, 3, height, width), list(adapter.taps))
    for tap in adapter.taps.values():
        assert maps[tap.name].shape == (2, tap.channels, height // tap.stride, width // tap.stride)


def test_mean_and_standard_deviation_are_the_weights_own():
    adapter = build("vit_tiny_patch16_224")
    config = timm_library.get_pretrained_cfg("vit_tiny_patch16_224")
    assert (adapter.mean, adapter.std) == (config.mean, config.std) == ((0.5,) * 3, (0.5,) * 3)
    assert timm_library.__version__ in adapter.fingerprint


def test_random_is_a_function_of_the_seed_and_maps_are_differentiable():
    one, same, other = build("test_resnet"), build("test_resnet"), build("test_resnet", seed=1)
    assert state_sha256(one) == state_sha256(same) != state_sha256(other)
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    one(x, ["last"])["last"].square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_users_file_of_a_whole_classifier(tmp_path):
    torch.manual_seed(1)
    original = timm_library.create_model("test_resnet", num_classes=7)
    path = tmp_path / "mine.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in original.state_dict().items()}}, path)
    adapter = build("test_resnet", str(path))
    assert torch.equal(adapter.body.conv1[0].weight, original.conv1[0].weight)
    assert adapter.account["dropped"] == ["fc.bias", "fc.weight"]
    with pytest.raises(CheckpointError, match="architecture"):
        build("test_convnext", str(path))


OTHERS = {
    "deeper": ("resnet50", "resnet101", {}, "layer3 goes on to 22, here it ends at 5; these are the weights of timm's"),
    "gates": ("resnet50", "seresnet50", {}, "64 unexpected: layer1.0.se.fc1.bias"),
    "wider lists": ("tf_efficientnet_lite0", "tf_efficientnet_lite1", {}, "blocks.1 goes on to 2, here it ends at 1"),
    "scales": ("vit_tiny_patch16_224", None, {"init_values": 1e-5}, "24 unexpected: blocks.0.ls1.gamma"),
    "query and key norms": ("vit_tiny_patch16_224", None, {"qk_norm": True}, "unexpected: blocks.0.attn.k_norm.bias"),
    "blocks": ("vit_tiny_patch16_224", None, {"depth": 18}, "blocks goes on to 17, here it ends at 11"),
    "registers": (
        "vit_tiny_patch16_224", None, {"reg_tokens": 4, "no_embed_class": False, "patch_size": 16}, "reg_token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_the_file_of_another_network_is_refused_and_named(tmp_path, case):
    """Each holds all keys of the network named; what that one lacks was left aside, and a figure printed."""
    name, other, how, message = OTHERS[case]
    state = timm_library.create_model(other or name, num_classes=10, **how).state_dict()
    if case == "registers":  # as DINOv2's authors write them: a place for each patch and the class token alone
        state["register_tokens"], state["pos_embed"] = state.pop("reg_token"), state["pos_embed"][:, 4:]
        message = "1 unexpected: register_tokens"
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as error:
        build(name, str(tmp_path / "x.pth"))
    text = str(error.value)
    assert message in text
    assert "\n" not in text
    wanted = f"give them as --method timm:{other}@{tmp_path / 'x.pth'}" if other else "of this architecture"
    assert text.endswith(wanted)


def test_a_files_own_network_is_still_read(tmp_path):
    """Heads of every kind are dropped: the network's own classifier, and what a self-supervised method puts on it."""
    torch.manual_seed(1)
    for name in ("test_convnext", "test_vit", "test_efficientnet"):
        original = timm_library.create_model(name, num_classes=7)
        beside = {"head.mlp.0.weight": torch.ones(2), "predictor.0.weight": torch.ones(2), "mask_token": torch.ones(2)}
        torch.save({**original.state_dict(), **beside}, tmp_path / "x.pth")
        adapter = build(name, str(tmp_path / "x.pth"))
        own = adapter.body.state_dict()
        assert all(torch.equal(own[key], value) for key, value in original.state_dict().items() if key in own)
        assert set(beside) < set(adapter.account["dropped"])


def test_the_normalisation_of_a_foreign_file_is_said(tmp_path, caplog):
    name = "vit_tiny_patch16_224"
    torch.save(timm_library.create_model(name, num_classes=0).state_dict(), tmp_path / "x.pth")
    with caplog.at_level(logging.INFO):
        adapter = build(name, str(tmp_path / "x.pth"))
    (line,) = [record.getMessage() for record in caplog.records if "normalised" in record.getMessage()]
    assert f"{tmp_path / 'x.pth'}: pictures are normalised as timm:{name} has it (mean 0.5, 0.5, 0.5, standard" in line
    assert adapter.account["normalised_as"] == {"name": f"timm:{name}", "mean": [0.5] * 3, "std": [0.5] * 3}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        build(name)
    assert "normalised" not in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tny_patch16_224", "Did you mean 'vit_tiny_patch16_224'"),
        ("resnet50.a1_in2k", "no weights 'a1_in2k'.*a1_in1k"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UnknownNameError, match=message) as error:
        build(name)
    assert "\n" not in str(error.value)


def test_strides_that_a_network_cannot_have():
    assert build("test_vit", output_stride=16).pad_to == 16
    with pytest.raises(SettingError, match="stride of 16; leave it at auto"):
        build("test_vit", output_stride=8)


def test_network_of_one_input_size_says_which():
    adapter = build("mixer_s32_224")
    with torch.no_grad():
        assert adapter(torch.zeros(1, 3, 224, 224), ["last"])["last"].shape == (1, 512, 7, 7)
        with pytest.raises(FeatureError, match="224×224 only, got 64×64; use --size 224"):
            adapter(torch.zeros(1, 3, 64, 64), ["last"])


def test_network_whose_cells_do_not_tile_the_picture():
    """inception_v3 does not pad: 128 pixels give 61 cells."""
    with pytest.raises(MismatchError, match=r"stage1 .*cells tile the picture"):
        _timm._stride("inception_v3", "stage1", torch.zeros(1, 64, 61, 61), (128, 128))


def test_weights_out_of_reach_are_told_at_once(monkeypatch):
    def no_network(*args: object, **kwargs: object) -> None:
        raise requests.ConnectionError("no route")

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("timm was asked for weights that are out of reach")

    monkeypatch.setattr(requests, "head", no_network)
    monkeypatch.setattr(_timm, "_kept_file", lambda config: None)
    monkeypatch.setattr(timm_library, "create_model", never)
    with pytest.raises(DownloadError, match="timm:test_resnet@random") as error:
        build("test_resnet", None)
    assert "\n" not in str(error.value)


def test_weights_in_the_hubs_cache_need_no_network(monkeypatch, tmp_path):
    torch.manual_seed(1)
    original = timm_library.create_model("test_resnet")
    torch.save(original.state_dict(), tmp_path / "kept.pth")
    monkeypatch.setattr(requests, "head", lambda *a, **k: pytest.fail("the network was used"))
    monkeypatch.setattr(_timm, "_kept_file", lambda config: tmp_path / "kept.pth")
    assert torch.equal(build("test_resnet", None).body.conv1[0].weight, original.conv1[0].weight)


def test_network_without_weights_says_so():
    name = next(n for n in timm_library.list_models("vit_*") if not timm_library.list_pretrained(f"{n}*"))
    with pytest.raises(CheckpointError, match="@random"):
        build(name, None)
