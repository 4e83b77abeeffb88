from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional

from bench.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from bench.contracts import Adapter
from bench.errors import FeatureError, MismatchError, SettingError
from bench.records import Tap


class TwoMaps(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"fine": x[:, :, ::2, ::2], "coarse": x[:, :2, ::8, ::8]}


TAPS = [Tap(name="fine", channels=3, stride=2), Tap(name="coarse", channels=2, stride=8)]


def test_a_network_of_ones_own_in_one_line():
    net = nn.Conv2d(3, 5, 4, stride=4)
    adapter = Backbone(net, stride=4, channels=5)
    assert isinstance(adapter, Adapter)
    assert (adapter.default_tap, adapter.pad_to, adapter.needs_labels) == ("last", 4, False)
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(adapter(x, ["last"])["last"], net(x))


def test_preprocess_is_division_by_255_and_normalisation():
    pictures = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    seen = Backbone(nn.Identity(), stride=1, channels=3).preprocess(pictures)
    wanted = functional.normalize(pictures.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-6)


def test_several_maps_in_one_pass():
    adapter = Backbone(TwoMaps(), taps=TAPS)
    assert (adapter.default_tap, adapter.pad_to) == ("coarse", 8)
    maps = adapter(torch.zeros(1, 3, 16, 16), ["coarse", "fine"])
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"fine": (1, 3, 8, 8), "coarse": (1, 2, 2, 2)}
    assert set(adapter(torch.zeros(1, 3, 16, 16), ["fine"])) == {"fine"}


def test_state_is_the_bodys_alone():
    net = nn.Conv2d(3, 5, 4)
    assert set(Backbone(net, stride=4, channels=5).state_dict()) == {"body.weight", "body.bias"}


def test_unknown_tap_names_the_known_ones():
    with pytest.raises(MismatchError, match="tap 'layer9' is not given; there are fine, coarse"):
        Backbone(TwoMaps(), taps=TAPS)(torch.zeros(1, 3, 8, 8), ["layer9"])
    with pytest.raises(MismatchError, match="tap 'x'"):
        Backbone(TwoMaps(), taps=TAPS, default_tap="x")


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        (nn.Flatten(), r"\(2, 192\); expected a float tensor \(2, 3, h, w\)"),
        (nn.Conv2d(3, 4, 1), r"\(2, 4, 8, 8\); expected a float tensor \(2, 3, h, w\)"),
        (TwoMaps(), "gave no map 'last'; it gave fine, coarse"),
    ],
)
def test_maps_that_are_not_as_promised(body, seen):
    with pytest.raises(FeatureError, match=seen):
        Backbone(body, stride=1, channels=3)(torch.zeros(2, 3, 8, 8), ["last"])


def test_integer_maps_and_one_map_for_several_taps_are_refused():
    class Integers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.long()

    with pytest.raises(FeatureError, match="floating-point"):
        Backbone(Integers(), stride=1, channels=3)(torch.zeros(1, 3, 4, 4), ["last"])
    with pytest.raises(FeatureError, match="expected a dictionary with fine, coarse"):
        Backbone(nn.Identity(), taps=TAPS)(torch.zeros(1, 3, 8, 8), ["fine"])


@pytest.mark.parametrize(
    "facts", [{}, {"stride": 4}, {"channels": 4}, {"taps": []}, {"taps": TAPS, "stride": 4}, {"taps": TAPS[:1] * 2}]
)
def test_facts_that_do_not_fit_together(facts):
    with pytest.raises(SettingError):
        Backbone(nn.Identity(), **facts)
