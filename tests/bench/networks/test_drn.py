from __future__ import annotations

import torch
from torch.nn import functional

from bench.networks.drn import DeepUSPSNetwork, drn_d_105


def test_size_and_stride_of_the_body():
    body = drn_d_105().eval()
    assert sum(parameter.numel() for parameter in body.parameters()) == 54_288_304
    assert len(body.state_dict()) == 648
    with torch.no_grad():
        assert body(torch.zeros(1, 3, 48, 64)).shape == (1, 512, 6, 8)


def test_logits_are_enlarged_bilinearly():
    torch.manual_seed(0)
    network = DeepUSPSNetwork()
    small = torch.randn(1, 2, 5, 6)
    with torch.no_grad():
        seen = network.up(small)
    wanted = functional.interpolate(small, scale_factor=8, mode="bilinear", align_corners=False)
    # beyond the centres of the outermost cells the convolution fades out
    torch.testing.assert_close(seen[..., 4:-4, 4:-4], wanted[..., 4:-4, 4:-4])
