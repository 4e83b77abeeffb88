from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.errors import CheckpointError, SettingError
from bench.networks.maskcontrast import MaskContrastNetwork, from_description

GOLDEN = Path(__file__).parents[2] / "golden"


def test_names_and_shapes_are_those_of_a_released_checkpoint_in_its_order():
    with torch.device("meta"):
        network = MaskContrastNetwork("resnet50")
    lines = (GOLDEN / "maskcontrast_resnet50_keys.txt").read_text().splitlines()
    prefix = "module.model_q."
    released = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    ours = [f"{name} {tuple(value.shape)}" for name, value in network.state_dict().items()]
    assert ours == released
    assert len(ours) == 363
    assert sum(parameter.numel() for parameter in network.parameters()) == 39_641_952


def test_forward_agrees_with_the_reference(golden_weights):
    golden = np.load(GOLDEN / "maskcontrast_forward.npz")
    network = MaskContrastNetwork("resnet18", dropout=0.0).double().eval()
    network.load_state_dict(golden_weights(network))
    images = torch.from_numpy(golden["images"])
    with torch.no_grad():
        embedding, saliency = network.upsampled(images)
        maps = network(images)
    for seen, wanted in (
        (embedding[:, :, ::8, ::8], golden["embedding"]),
        (saliency[:, ::8, ::8], golden["saliency_logits"]),
    ):
        assert np.abs(seen.numpy() - wanted).max() <= 1e-6 * np.abs(wanted).max()
    again = functional.interpolate(maps["embedding"], (96, 80), mode="bilinear", align_corners=False)
    torch.testing.assert_close(again, embedding)


@pytest.mark.parametrize(("arch", "stride"), [("resnet18", 8), ("resnet18", 16), ("small", 8), ("small", 16)])
def test_taps_say_what_the_maps_are(arch, stride):
    network = MaskContrastNetwork(arch, dim=24, output_stride=stride).eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 64, 96))
    assert [tap.name for tap in network.taps] == list(maps) == ["decoder", "embedding", "saliency"]
    assert [tap.kind for tap in network.taps] == ["feature", "feature", "foreground_logit"]
    assert network.taps[1].channels == 24
    for tap in network.taps:
        assert tap.stride == stride
        assert maps[tap.name].shape == (1, tap.channels, 64 // stride, 96 // stride)


def test_small_is_small_and_learns_through_all_of_its_parameters():
    network = MaskContrastNetwork("small")
    assert sum(parameter.numel() for parameter in network.parameters()) < 500_000
    maps = network(torch.randn(2, 3, 32, 40))
    (maps["embedding"].square().mean() + maps["saliency"].square().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_one_picture_keeps_its_batch_axis_while_training():
    embedding, saliency = MaskContrastNetwork("resnet18").train().upsampled(torch.randn(1, 3, 32, 40))
    assert embedding.shape == (1, 32, 32, 40)
    assert saliency.shape == (1, 32, 40)


@pytest.mark.parametrize(
    "settings",
    [{"arch": "resnet18", "dim": 16, "output_stride": 16, "dropout": 0.1}, {"arch": "small"}],
)
def test_a_description_builds_the_same_network_again(settings):
    with torch.device("meta"):
        network = MaskContrastNetwork(**settings)
        again = from_description(network.describe())
    assert again.describe() == network.describe()
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (network, again)]
    assert shapes[0] == shapes[1]
    assert {key: network.describe()[key] for key in settings} == settings


@pytest.mark.parametrize("description", [{}, {"network": "iic", "arch": "small"}, {"network": "maskcontrast", "x": 1}])
def test_a_foreign_description_is_refused(description):
    with pytest.raises(CheckpointError, match="is not one of MaskContrast"):
        from_description(description)


def test_unknown_architectures_and_strides_are_refused():
    with pytest.raises(SettingError, match="'resnet50'"):
        MaskContrastNetwork("resnet5")
    with pytest.raises(SettingError, match="8 or 16"):
        MaskContrastNetwork("small", output_stride=32)
