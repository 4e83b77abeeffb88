from __future__ import annotations

import torch
import torchvision

from bench.adapters import supervised
from bench.adapters._resnet_card import ResNetOptions
from bench.records import AdapterRequest
from bench.weights import resolve


def test_a_real_resnet50_goes_through_a_file(tmp_path):
    torch.manual_seed(0)
    original = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    torch.save(original.state_dict(), tmp_path / "mine.pth")
    checkpoint = resolve(supervised.CARD, str(tmp_path / "mine.pth"), weights_dir=tmp_path)
    adapter = supervised.build(AdapterRequest(card=supervised.CARD, checkpoint=checkpoint, options=ResNetOptions()))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = torch.nn.Sequential(*list(original.children())[:-2])(x)
        seen = adapter.eval()(x, ["layer4"])["layer4"]
    assert torch.equal(seen, wanted)
    assert sum(p.numel() for p in adapter.parameters()) == 23_508_032
    assert adapter.account["dropped"] == ["fc.bias", "fc.weight"]
