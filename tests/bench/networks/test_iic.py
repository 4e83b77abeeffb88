"""IIC's networks: the reference's maps, sizes, geometry and key names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from bench.errors import CheckpointError
from bench.networks.iic import (
    SMALLEST_SIDE,
    CooccurrenceNetwork,
    IICNetwork,
    Trunk,
    clusters_of,
    iic_from_description,
    network_input,
    trunk_from_description,
    trunk_tap,
    with_edges,
)

GOLDEN = Path(__file__).parents[2] / "golden"
TWO_HEADS = {"head_A": 45, "head_B": 15}


def keys(name: str) -> dict[str, tuple[int, ...]]:
    lines = (GOLDEN / f"{name}_keys.txt").read_text().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {key: tuple(int(side) for side in shape.strip("(),").split(",") if side.strip()) for key, shape in pairs}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def with_golden_weights(network: Any, state: dict[str, torch.Tensor]) -> Any:
    network.double().load_state_dict(state)
    return network.eval()


def same(seen: torch.Tensor, wanted: np.ndarray, step: tuple[int, int, int]) -> bool:
    """Equal at every `step` of channels, rows and columns, to 1e-9 of the largest value."""
    part = seen.numpy()[:, :: step[0], :: step[1], :: step[2]]
    return part.shape == wanted.shape and np.abs(part - wanted).max() <= 1e-9 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("sq", {"sobel": (1, 4, 4), "trunk": (32, 2, 2), "head_A": (5, 4, 4), "head_B": (3, 4, 4)}),
        ("rect", {"sobel": (1, 1, 1), "trunk": (16, 1, 1), "head_A": (5, 4, 4), "head_B": (2, 2, 2)}),
    ],
)
def test_the_reference_maps(name, steps, golden_weights):
    golden = np.load(GOLDEN / "iic.npz")
    network = IICNetwork(TWO_HEADS, sub_heads=2)
    with_golden_weights(network, golden_weights(network))
    image = torch.from_numpy(golden[f"{name}_image"]).double()
    inputs = with_edges(image[:, :3], image[:, 3:])
    assert same(inputs[:, 3:], golden[f"{name}_sobel"], steps["sobel"])
    with torch.no_grad():
        trunk = network.trunk(inputs)
        heads = network(inputs, list(network.clusters))
    assert same(trunk, golden[f"{name}_trunk"], steps["trunk"])
    for head, maps in heads.items():
        for index, probabilities in enumerate(maps):
            assert same(probabilities, golden[f"{name}_{head}_{index}"], steps[head])
            mean, _, norm, largest = golden[f"{name}_{head}_{index}_stats"]
            seen = (probabilities.mean(), probabilities.norm(), probabilities.max())
            assert np.allclose([float(value) for value in seen], [mean, norm, largest], rtol=1e-9)
    inner = np.s_[:, 1:-1, 1:-1]  # at the border all clusters are equally likely, and rounding decides
    for index, probabilities in enumerate(heads["head_B"]):
        assert np.array_equal(probabilities.argmax(1).numpy()[inner], golden[f"{name}_head_B_{index}_argmax"][inner])


def test_the_reference_stand_in_for_cooccurrence(golden_weights):
    golden = np.load(GOLDEN / "iic_isola.npz")
    image = torch.from_numpy(np.load(GOLDEN / "iic.npz")["sq_image"]).double()
    network = CooccurrenceNetwork(11, branch=8)  # the linear layers, 2 GB in float64, were not evaluated there
    network.isola_head.siamese_branch = nn.Sequential(
        nn.Conv2d(512, 1024, 3, padding=1, bias=False), nn.BatchNorm2d(1024), nn.ReLU()
    )
    with_golden_weights(network, golden_weights(network))
    with torch.no_grad():
        inputs = with_edges(image[:, :3], image[:, 3:])
        trunk, penultimate = network.features(inputs), network.penultimate(inputs)
        branch = network.isola_head.siamese_branch(penultimate[:, :, 10:21, 20:31])
    assert same(trunk, golden["trunk"], (32, 2, 2))
    assert same(penultimate, golden["penultimate"], (32, 4, 4))
    assert same(branch, golden["siamese"], (32, 1, 1))


def test_names_shapes_and_numbers_of_the_released_files():
    two = IICNetwork(TWO_HEADS)
    assert shapes(two) == keys("iic")
    assert sum(p.numel() for p in two.parameters()) == 4_534_464
    assert tuple(shapes(IICNetwork({"head": 15}, sub_heads=2)))[-2:] == (
        "head.heads.0.0.weight",
        "head.heads.1.0.weight",
    )
    with torch.device("meta"):
        pair = CooccurrenceNetwork()
    assert shapes(pair) == keys("iic_isola")
    assert sum(p.numel() for p in pair.parameters()) == 262_981_825


def test_sizes_and_where_the_cells_of_the_trunk_lie():
    network = IICNetwork({"head_B": 3}, width=4).eval()
    for parameter in network.trunk.parameters():
        parameter.data.abs_()  # no unit is dead: every cell that sees a change changes
    tap = trunk_tap(network.trunk)
    assert (tap.channels, tap.stride, tap.offset) == (32, 2, 4)
    inputs = torch.zeros(1, 5, 128, 128)
    with torch.no_grad():
        plain = network.trunk(inputs)
        assert plain.shape == (1, 32, 60, 60)
        assert network(inputs, ["head_B"])["head_B"][0].shape == (1, 3, 128, 128)
        assert network.trunk(torch.zeros(1, 5, SMALLEST_SIDE, SMALLEST_SIDE)).shape == (1, 32, 1, 1)
        inputs[0, :, 64:66, 40:42] = 1
        changed = (network.trunk(inputs) - plain).abs().sum(1)[0]
    rows, columns = (changed > 0).nonzero(as_tuple=True)
    centre = [float(tap.offset + tap.stride * (cells.float().mean() + 0.5)) for cells in (rows, columns)]
    assert centre == [65, 41]


def test_a_head_knows_nothing_at_the_border():
    network = IICNetwork({"head_B": 4}, width=4).eval()
    with torch.no_grad():
        (probabilities,) = network(torch.rand(1, 5, 32, 32), ["head_B"])["head_B"]
    assert torch.allclose(probabilities.sum(1), torch.ones(1, 32, 32))
    assert torch.allclose(probabilities[..., 0], torch.tensor(0.25))
    assert probabilities[..., 16, 16].std() > 1e-3


def test_the_input_is_blue_green_red_and_the_edges_of_grey():
    pictures = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    seen = network_input(pictures)
    red, green, blue = pictures.double().div(255).unbind(1)
    assert torch.allclose(seen[:, :3].double(), torch.stack([blue, green, red], 1), atol=1e-6)
    grey = (0.299 * blue + 0.587 * green + 0.114 * red).numpy()
    for channel, axis in ((3, 1), (4, 0)):
        wanted = [-ndimage.sobel(one, axis, mode="constant") for one in grey]
        assert np.allclose(seen[:, channel], wanted, atol=1e-5)


def test_a_description_builds_the_network_again():
    network = IICNetwork({"head_A": 6, "head_B": 2}, width=4, sub_heads=2)
    again = iic_from_description(network.describe())
    assert shapes(again) == shapes(network)
    assert clusters_of(network.state_dict()) == ({"head_A": 6, "head_B": 2}, 2)
    pair = CooccurrenceNetwork(11, width=4, branch=8)
    assert shapes(trunk_from_description(pair.describe())) == shapes(Trunk(4))
    with pytest.raises(CheckpointError, match=r"not one of iic; expected network=iic and clusters, sub_heads, width"):
        iic_from_description(pair.describe())
