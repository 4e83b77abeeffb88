"""Saliency networks: the original's maps through files in the official layouts, and how pictures are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bench.errors import CheckpointError, DownloadError, SettingError
from bench.estimators import _deepusps, _network, basnet, deepusps, u2net
from bench.networks.basnet import BASNet
from bench.networks.drn import DeepUSPSNetwork
from bench.networks.u2net import U2Net
from bench.records import Checkpoint, EstimatorCard, EstimatorRequest, KeyRule
from bench.weights import detect, resolve, select

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS: dict[str, tuple[EstimatorCard, Callable[[], nn.Module], int]] = {
    "basnet": (basnet.CARD, BASNet, 87_060_360),
    "u2net": (u2net.CARD, U2Net, 44_009_869),
    "u2netp": (u2net.CARD, lambda: U2Net("u2netp"), 1_131_181),
}


RELEASED = {"basnet": "public", "u2net": "u2net", "u2netp": "u2netp"}
"""The name of each network's file in its card."""


@pytest.fixture
def official(golden_state, tmp_path) -> Iterator[Callable[[str], Checkpoint]]:
    """A network's whole file in the official layout, where the released one would lie.

    float64: rounding BASNet's golden weights to float32 alone moves its maps by 2e-5.
    """
    files = []

    def write(name: str) -> Checkpoint:
        card = NETWORKS[name][0]
        (filename,) = (released.filename for released in card.checkpoints if released.name == RELEASED[name])
        state = golden_state(name)
        if name == "basnet":  # written by torch 0.4
            state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        files.append(tmp_path / filename)
        torch.save(state, files[-1])
        return resolve(card, RELEASED[name], weights_dir=tmp_path)

    yield write
    for file in files:
        file.unlink()  # up to 700 MB


def assert_golden(name: str, network: nn.Module) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(golden["input"]).double())
    maps = [torch.sigmoid(each)[0, 0].numpy() for each in logits]
    sides = [f"side_{k}" for k in range(1, 8)] if name == "basnet" else [f"d{k}" for k in range(1, 7)]
    assert len(maps) == 1 + len(sides)
    assert np.abs(maps[0] - golden["d0"][0]).max() <= 1e-9
    for seen, side in zip(maps[1:], sides, strict=True):
        assert np.abs(seen[::8, ::8] - golden[side][0]).max() <= 1e-9
    # many sigmoids are saturated, the logits are not
    wanted = golden["d0_logit"]
    assert np.abs(logits[0][0, :, ::2, ::2].numpy() - wanted).max() <= 1e-9 * np.abs(wanted).max()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_official_files_give_the_originals_maps(name, official):
    """From the name of a file to the network's maps, computed in float64 as those of the original were."""
    card, make, parameters = NETWORKS[name]
    checkpoint = official(name)
    assert checkpoint.kind == "released"
    request = EstimatorRequest(card=card, checkpoint=checkpoint, options=card.options())
    network = _network.load(lambda: make().double(), request)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert_golden(name, network)


@pytest.mark.parametrize("key", ["outconv.bias", "stage1.rebnconv1.bn_s1.running_var"])
def test_a_file_that_lacks_a_key_is_refused(key, official):
    checkpoint = official("u2netp")
    state = torch.load(checkpoint.path)
    del state[key]
    torch.save(state, checkpoint.path)
    request = EstimatorRequest(card=u2net.CARD, checkpoint=checkpoint, options=u2net.CARD.options())
    with pytest.raises(CheckpointError, match=f"1 missing: {key}"):
        _network.load(lambda: U2Net("u2netp"), request)


def rules_of(name: str) -> tuple[KeyRule, ...]:
    card = NETWORKS[name][0]
    return next(released.layouts for released in card.checkpoints if released.name == RELEASED[name])


def no_values(keys: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors of these shapes that take no memory."""
    return {key: torch.zeros(()).expand(shape) for key, shape in keys.items()}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_keys_are_the_official_ones(name, golden_keys):
    expected = {key: tuple(value.shape) for key, value in NETWORKS[name][1]().state_dict().items()}
    assert expected == golden_keys(name)
    weights, account = select(no_values(expected), rules_of(name), expected, source="file")
    assert (set(weights), account.dropped, account.outside, account.missing) == (set(expected), (), (), ())


@pytest.mark.parametrize("entry", ["", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_layouts_that_the_unsupervised_basnet_may_have(entry, prefix, golden_keys):
    keys = golden_keys("basnet")
    state = {prefix + key: value for key, value in no_values(keys).items()}
    weights, account = select({entry: state} if entry else state, basnet.LAYOUTS, keys, source="file")
    assert len(weights) == len(keys)
    assert (account.rule.entry, account.rule.prefix, account.dropped) == (entry, prefix, ())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state: state.pop("outconv1.bias"), "1 missing: outconv1.bias"),
        (lambda state: state.update({"fc.weight": torch.zeros(3)}), "1 unexpected: fc.weight"),
        (lambda state: state.update({"outconv1.bias": torch.zeros(2)}), "1 of another shape: outconv1.bias"),
    ],
)
def test_nothing_is_loaded_in_part(spoil, said, golden_keys):
    keys = golden_keys("basnet")
    state = no_values(keys)
    spoil(state)
    with pytest.raises(CheckpointError, match=said):
        select(state, basnet.LAYOUTS, keys, source="file")


def test_a_file_tells_its_architecture(tmp_path):
    """`auto` builds U²-NetP for its file, wherever the state dict lies; the wrong one by hand is refused."""
    state = {f"module.{key}": value for key, value in U2Net("u2netp").state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "own.pth")
    checkpoint = resolve(u2net.CARD, str(tmp_path / "own.pth"), weights_dir=tmp_path)
    asked = EstimatorRequest(card=u2net.CARD, checkpoint=checkpoint, options=u2net.U2NetOptions())
    estimator = u2net.build(asked)
    (saliency,) = estimator.saliency([estimator.prepare(np.zeros((20, 30, 3), np.uint8))])
    assert saliency.shape == (320, 320)
    wrong = EstimatorRequest(card=u2net.CARD, checkpoint=checkpoint, options=u2net.U2NetOptions(arch="u2net"))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        u2net.build(wrong)


def test_deepusps_reads_what_its_training_code_writes():
    expected = {key: tuple(value.shape) for key, value in DeepUSPSNetwork().state_dict().items()}
    assert expected["up.weight"] == (2, 1, 16, 16)
    state = {f"module.{key}": value for key, value in no_values(expected).items()}
    checkpoint = {"epoch": 24, "arch": "drn_d_105", "state_dict": state, "optimizer": {"state": {}}}
    rule = detect(checkpoint, expected, source="checkpoint_024.pth.tar")
    assert (rule.entry, rule.prefix) == ("state_dict", "module.")
    assert len(select(checkpoint, [rule], expected, source="file")[0]) == len(expected)


class Known(nn.Module):
    """Logits that are known: salient where the input's first channel is above 0."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.stack((pictures[:, 0], -pictures[:, 0]), 1)


def test_deepusps_calls_channel_0_salient(monkeypatch):
    monkeypatch.setattr(_deepusps, "DeepUSPSNetwork", Known)
    monkeypatch.setattr(_deepusps, "INPUT", 8)
    options = deepusps.DeepUSPSOptions(mean=(0.5, 0.0, 0.0), std=(0.1, 1.0, 1.0))
    none = Checkpoint(name="random", kind="random")
    estimator = deepusps.build(EstimatorRequest(card=deepusps.CARD, checkpoint=none, options=options))
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 4:] = (204, 0, 255)  # red 0.8
    (saliency,) = estimator.saliency([estimator.prepare(picture)])
    # softmax of (3, -3) and of (-5, 5)
    assert saliency[:, 4:].ravel().tolist() == [int(255 / (1 + np.exp(-6)))] * 32
    assert saliency[:, :4].ravel().tolist() == [int(255 / (1 + np.exp(10)))] * 32


@pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"std": (1.0, 1.0, 0.0)}])
def test_deepusps_wants_three_channels(options):
    none = Checkpoint(name="random", kind="random")
    request = EstimatorRequest(card=deepusps.CARD, checkpoint=none, options=deepusps.DeepUSPSOptions(**options))
    with pytest.raises(SettingError, match="three numbers each"):
        deepusps.build(request)


def test_without_a_file_one_line_says_how_to_get_it(tmp_path):
    with pytest.raises(
        DownloadError, match=r"basnet@unsupervised needs .*14qsoXU-NE63jKzuGPTJd8DRDnpnP4w6j.*put it at"
    ):
        resolve(basnet.CARD, "unsupervised", weights_dir=tmp_path, fetch=False)
    with pytest.raises(
        CheckpointError, match="deepusps has no released weights; give deepusps@random or deepusps@FILE"
    ):
        resolve(deepusps.CARD, None, weights_dir=tmp_path)


def test_a_network_reads_and_answers_as_its_authors_do():
    """The path from a picture to its map, once more in other words: a network that gives back its input's red."""

    class Red(nn.Module):
        def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (pictures[:, :1], -pictures[:, :1])

    none = Checkpoint(name="random", kind="random")
    request = EstimatorRequest(card=basnet.CARD, checkpoint=none, options=basnet.CARD.options())
    estimator = _network.first_output(Red().eval(), request, size=16)
    rng = np.random.default_rng(0)
    picture = np.array(Image.fromarray(rng.integers(0, 200, (5, 4, 3), np.uint8)).resize((16, 16)))
    (saliency,) = estimator.saliency([estimator.prepare(picture)])
    scaled = (picture[..., 0] / picture.max() - 0.485) / 0.229
    probability = 1 / (1 + np.exp(-scaled))
    wanted = (probability - probability.min()) / np.ptp(probability) * 255
    assert saliency.dtype == np.uint8
    assert np.abs(saliency - np.floor(wanted)).max() <= 1
    assert (saliency.min(), saliency.max()) == (0, 255)
