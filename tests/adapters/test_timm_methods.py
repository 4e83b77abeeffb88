"""DINO, DINOv2, DINOv3 and MAE: cards that agree with timm's record, and files laid out as timm and the authors do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
import timm
import torch
from safetensors.torch import save_file

from bench import registry
from bench.adapters import _timm, dino, dinov2, dinov3, mae
from bench.backbone import Backbone
from bench.errors import CheckpointError, DownloadError, SettingError
from bench.records import AdapterRequest, Checkpoint
from bench.weights import holds_network, resolve, state_sha256

METHODS = (dino, dinov2, dinov3, mae)
LICENCES = {"apache-2.0": "Apache-2.0", "dinov3-license": "DINOv3 License", "cc-by-nc-4.0": "CC BY-NC 4.0"}

State = dict[str, torch.Tensor]


def build(method: ModuleType, spec: str | None, folder: Path, **options: Any) -> Backbone:
    card = method.CARD
    checkpoint = resolve(card, spec, weights_dir=folder, fetch=False)
    adapter = registry.load(card.factory)(
        AdapterRequest(card=card, checkpoint=checkpoint, options=card.options(**options))
    )
    assert isinstance(adapter, Backbone)
    return adapter.eval()


@pytest.fixture
def tiny(monkeypatch):
    """Every method's first two networks are timm's small test transformers, of 16 pixels per patch."""
    for method in METHODS:
        first, second = list(method.NETWORKS)[:2]
        monkeypatch.setattr(method, "NETWORKS", {first: "test_vit.r160_in1k", second: "test_vit2.r160_in1k"})


def network(name: str = "test_vit") -> torch.nn.Module:
    torch.manual_seed(0)
    body: torch.nn.Module = timm.create_model(name, num_classes=0)
    return body.eval()


def under(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.CARD.name)
def test_cards_agree_with_timms_record(method):
    assert get_args(get_type_hints(method.CARD.options)["arch"]) == ("auto", *method.NETWORKS)
    for one in method.CARD.checkpoints:
        name = method.NETWORKS[one.name]
        record = timm.get_pretrained_cfg(name)
        assert record.hf_hub_id in one.url
        assert one.filename.startswith(name)
        assert one.licence == LICENCES[record.license]
        assert "not opened" in one.verified
        data = name.partition(".")[2]
        assert data not in ("lvd142m", "lvd1689m", "sat493m") or data in re.sub(
            "[^a-z0-9]", "", one.training_data.lower()
        )


LAYOUTS: dict[str, tuple[ModuleType, Callable[[State], object]]] = {
    "dino, backbone": (dino, lambda state: state),
    "dino, training": (
        dino,
        lambda state: {
            "student": under("module.backbone.", {key: -value for key, value in state.items()}),
            "teacher": under("backbone.", state) | {"head.last_layer.weight_v": torch.zeros(8, 4)},
            "epoch": 100,
        },
    ),
    "dinov2, with its mask token": (dinov2, lambda state: {**state, "mask_token": torch.zeros(1, 64)}),
    "dinov3": (dinov3, lambda state: state),
    "mae": (mae, lambda state: state),
    "mae, with its decoder": (
        mae,
        lambda state: {
            "model": {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 64)}
        },
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_files_in_the_official_layouts(kind, tiny, tmp_path):
    method, make = LAYOUTS[kind]
    wanted = network()
    torch.save(make(wanted.state_dict()), tmp_path / "x.pth")
    adapter = build(method, str(tmp_path / "x.pth"), tmp_path)
    assert state_sha256(adapter.body) == state_sha256(wanted)
    assert adapter.account["missing"] == []
    pictures = torch.randint(0, 256, (1, 3, 48, 80), dtype=torch.uint8)
    with torch.no_grad():
        inputs = adapter.preprocess(pictures)
        seen = adapter(inputs, ["last"])["last"]
        tokens = adapter.body.forward_features(inputs)[:, 1:]
    torch.testing.assert_close(seen, tokens.transpose(1, 2).reshape(1, -1, 3, 5), rtol=0, atol=1e-5)


def test_a_file_says_which_network_it_is(tiny, tmp_path):
    first, second = list(dino.NETWORKS)
    wanted = network("test_vit2")
    torch.save(wanted.state_dict(), tmp_path / "x.pth")
    assert state_sha256(build(dino, str(tmp_path / "x.pth"), tmp_path).body) == state_sha256(wanted)
    with pytest.raises(CheckpointError, match=r"does not fit the network: .*these are the weights of timm's test_vit2"):
        build(dino, str(tmp_path / "x.pth"), tmp_path, arch=first)
    assert build(dino, "random", tmp_path, arch=second).name == "test_vit2.r160_in1k"


def test_a_released_file_is_that_of_its_name(tiny, tmp_path):
    second = list(dinov2.NETWORKS)[1]
    released = dinov2.CARD.checkpoints[1]
    wanted = network("test_vit2")
    save_file(wanted.state_dict(), tmp_path / released.filename)
    assert state_sha256(build(dinov2, second, tmp_path).body) == state_sha256(wanted)
    with pytest.raises(
        SettingError, match=r"dinov2@base is the network base, not small: drop --set dinov2\.arch=small"
    ):
        build(dinov2, second, tmp_path, arch="small")
    with pytest.raises(DownloadError, match=r"huggingface\.co/timm/vit_small_patch14_dinov2.* and put it at"):
        build(dinov2, None, tmp_path)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.CARD.name)
def test_every_network_has_keys_of_its_own(method):
    """What a file holds is told by names and shapes alone; satellite weights are those of another normalisation."""
    shapes = {name: _timm._shapes(network) for name, network in method.NETWORKS.items()}
    for name, own in shapes.items():
        state = {key: torch.empty(shape, device="meta") for key, shape in own.items()}
        fitting = [other for other in shapes if holds_network(state, method.LAYOUTS, shapes[other])]
        plain = name.removesuffix("-satellite")
        assert fitting == ([plain, f"{plain}-satellite"] if f"{plain}-satellite" in shapes else [name])


def test_registers_are_never_left_out():
    """The authors' file with registers holds all of the network without them, in other names: it is refused."""
    expected = _timm._shapes(dinov2.NETWORKS["small"])
    state = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    authors = {**state, "mask_token": torch.empty(1, 384), "register_tokens": torch.empty(1, 4, 384)}
    for name in dinov2.NETWORKS.values():
        assert not holds_network(authors, dinov2.LAYOUTS, _timm._shapes(name))


def test_satellite_pictures_are_normalised_otherwise():
    mean = {name: timm.get_pretrained_cfg(network).mean for name, network in dinov3.NETWORKS.items()}
    assert mean.pop("7b-satellite") == mean.pop("large-satellite") == (0.43, 0.411, 0.296)
    assert set(mean.values()) == {(0.485, 0.456, 0.406)}


def test_a_file_of_another_method_is_named(tiny, tmp_path):
    torch.save({"module.prototypes.weight": torch.zeros(3000, 128)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"does not fit .*this looks like a swav file") as error:
        build(mae, str(tmp_path / "x.pth"), tmp_path)
    assert "\n" not in str(error.value)


def test_random_is_a_function_of_the_seed(tmp_path):
    one, same, other = (
        dino.build(
            AdapterRequest(
                card=dino.CARD,
                checkpoint=Checkpoint(name="random", kind="random", seed=seed),
                options=dino.DINOOptions(),
            )
        )
        for seed in (0, 0, 1)
    )
    assert state_sha256(one) == state_sha256(same) != state_sha256(other)
    assert one.name == "vit_small_patch16_224.dino"
