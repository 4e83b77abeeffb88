from __future__ import annotations

import pytest
import torch
from torchvision.models.segmentation import deeplabv3

from bench.networks.deeplab import DeepLabHead, NarrowHead


def without_dropout(network):
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network


@pytest.mark.parametrize("training", [False, True])
def test_equals_torchvisions_head_up_to_its_classifier(training):
    torch.manual_seed(0)
    theirs = without_dropout(deeplabv3.DeepLabHead(32, 21, (12, 24, 36))).train(training)
    ours = DeepLabHead(32, dropout=0.0).train(training)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("4.")}
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    x = torch.randn(2, 32, 7, 9)
    seen = ours(x)
    assert seen.shape == (2, 256, 7, 9)
    torch.testing.assert_close(seen, theirs[3](theirs[2](theirs[1](theirs[0](x)))))
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[key])


def test_rates_and_width_are_settings():
    head = DeepLabHead(8, rates=(1, 3), width=16)
    assert head[0].convs[2][0].dilation == (3, 3)
    assert head(torch.randn(2, 8, 5, 5)).shape == (2, 16, 5, 5)


def test_one_picture_trains_with_the_pooled_branchs_running_statistics():
    torch.manual_seed(0)
    head = DeepLabHead(8, width=16, dropout=0.0).train()
    norm = head[0].convs[4][2]
    norm.running_mean.normal_()
    before = norm.running_mean.clone()
    x = torch.randn(1, 8, 5, 6)
    pooled = head[0].convs[4](x)
    expected = torch.relu(norm.eval()(head[0].convs[4][1](x.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(pooled, expected.expand_as(pooled))
    norm.train()
    head(x).sum().backward()
    assert torch.equal(norm.running_mean, before)
    assert head[0].convs[4][1].weight.grad is not None
    head(x.expand(2, -1, -1, -1) * torch.tensor([1.0, 2.0])[:, None, None, None])
    assert not torch.equal(norm.running_mean, before)


def test_narrow_head_keeps_the_size():
    head = NarrowHead(8, width=12)
    seen = head(torch.randn(2, 8, 5, 6))
    assert seen.shape == (2, 12, 5, 6)
    assert seen.min() >= 0
