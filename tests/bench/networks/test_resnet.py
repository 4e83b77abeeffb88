from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from bench.networks.resnet import LAYERS, dilated_resnet

GOLDEN = Path(__file__).parents[2] / "golden" / "maskcontrast_forward.npz"


@pytest.mark.parametrize(
    ("output_stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True]), (32, [False, False, False])]
)
def test_bottlenecks_equal_torchvision_bit_for_bit(output_stride, replaced):
    torch.manual_seed(3)
    reference = torchvision.models.resnet50(replace_stride_with_dilation=replaced).eval()
    torch.manual_seed(3)
    network = dilated_resnet("resnet50", output_stride).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = network(x)
        y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        for name in LAYERS:
            y = getattr(reference, name)(y)
            assert torch.equal(maps[name], y)
    assert maps["layer4"].shape == (1, 2048, 64 // output_stride, 96 // output_stride)


def test_body_has_torchvisions_names_without_the_classifier():
    network = dilated_resnet("resnet50")
    theirs = set(torchvision.models.resnet50(weights=None).state_dict())
    assert set(network.state_dict()) == theirs - {"fc.weight", "fc.bias"}
    assert sum(p.numel() for p in network.parameters()) == 23_508_032


def test_basic_blocks_agree_with_the_reference_network(golden_weights):
    golden = np.load(GOLDEN)
    network = dilated_resnet("resnet18", 8).double().eval()
    network.load_state_dict(golden_weights(network, "backbone."))
    with torch.no_grad():
        seen = network(torch.from_numpy(golden["images"]), ["layer4"])["layer4"].numpy()[:, ::16]
    wanted = golden["backbone"]
    assert np.abs(seen - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_taps_say_what_the_maps_are(arch, output_stride):
    network = dilated_resnet(arch, output_stride).eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 64, 96))
    for tap in network.taps:
        assert maps[tap.name].shape == (1, tap.channels, 64 // tap.stride, 96 // tap.stride)


def test_stops_after_the_deepest_tap():
    network = dilated_resnet("resnet18", 8).eval()
    reached = []
    for name in LAYERS:
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: reached.append(name))
    assert set(network(torch.zeros(1, 3, 32, 32), ["layer2"])) == {"layer2"}
    assert reached == ["layer1", "layer2"]
