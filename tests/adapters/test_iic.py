"""The adapters `iic` and `cooccurrence`: the reference's maps, released files, run folders, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.adapters import cooccurrence, iic
from bench.backbone import Backbone
from bench.errors import CheckpointError, DownloadError, MismatchError
from bench.networks.iic import CooccurrenceNetwork, IICNetwork, Trunk, with_edges
from bench.records import AdapterRequest
from bench.testing import check_adapter
from bench.weights import resolve, state_sha256

GOLDEN = Path(__file__).parents[1] / "golden"


def build(module: Any, spec: str | None, folder: Path, classes: int = 0, **options: Any) -> Backbone:
    card = module.CARD
    checkpoint = resolve(card, spec, weights_dir=folder)
    request = AdapterRequest(card=card, checkpoint=checkpoint, options=card.options(**options), classes=classes)
    adapter = module.build(request)
    assert isinstance(adapter, Backbone)
    return adapter.eval()


def released_state(network: torch.nn.Module, golden_weights: Any) -> dict[str, torch.Tensor]:
    return {key: value.float() if value.dim() else value for key, value in golden_weights(network).items()}


@pytest.fixture(scope="module")
def released(tmp_path_factory, golden_weights) -> Path:
    """A folder with files in the official layout, of the golden files' weights."""
    folder = tmp_path_factory.mktemp("released")
    two, one = IICNetwork({"head_A": 45, "head_B": 15}), IICNetwork({"head": 45}, sub_heads=2)
    optimiser = torch.optim.Adam(two.parameters()).state_dict()
    for model, network in ((512, two), (521, one)):
        held = {"net": released_state(network, golden_weights), "optimiser": optimiser}
        torch.save(held, folder / f"iic_{model}.pytorch", _use_new_zipfile_serialization=False)
    return folder


def golden_input(name: str) -> torch.Tensor:
    image = torch.from_numpy(np.load(GOLDEN / "iic.npz")[f"{name}_image"])
    return with_edges(image[:, :3], image[:, 3:])


def near(seen: torch.Tensor, wanted: np.ndarray, step: tuple[int, int, int]) -> bool:
    part = seen.numpy()[:, :: step[0], :: step[1], :: step[2]]
    return bool(np.abs(part - wanted).max() <= 1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "steps"), [("sq", ((32, 2, 2), (5, 4, 4), (3, 4, 4))), ("rect", ((16, 1, 1), (5, 4, 4), (2, 2, 2)))]
)
def test_the_reference_maps_come_through_the_adapter(name, steps, released):
    adapter = build(iic, None, released)
    golden = np.load(GOLDEN / "iic.npz")
    with torch.no_grad():
        maps = adapter(golden_input(name), ["trunk", "head_A", "head_B"])
    for tap, wanted, step in zip(maps, ("trunk", "head_A_0", "head_B_0"), steps, strict=True):
        assert near(maps[tap], golden[f"{name}_{wanted}"], step)
    inner = np.s_[:, 1:-1, 1:-1]  # at the border all clusters are equally likely, and rounding decides
    assert np.array_equal(maps["head_B"].argmax(1).numpy()[inner], golden[f"{name}_head_B_0_argmax"][inner])


def test_a_released_file_is_loaded_key_for_key(released, golden_keys):
    adapter = build(iic, None, released)
    held = torch.load(released / "iic_512.pytorch", weights_only=True)["net"]
    assert {key: tuple(value.shape) for key, value in held.items()} == golden_keys("iic")
    state = adapter.body.state_dict()
    assert all(torch.equal(value, held[key]) for key, value in state.items())
    assert adapter.account["taken"] == len(held) == 38
    assert adapter.account["missing"] == adapter.account["dropped"] == adapter.account["outside"] == []
    kinds = {name: (tap.kind, tap.channels, tap.stride, tap.offset) for name, tap in adapter.taps.items()}
    assert kinds == {
        "trunk": ("feature", 512, 2, 4),
        "head_B": ("cluster_prob", 15, 1, 0),
        "head_A": ("cluster_prob", 45, 1, 0),
    }
    assert tuple(adapter.taps) == iic.CARD.taps
    assert adapter.default_tap == iic.CARD.default_tap


def test_a_network_of_one_head_and_of_several_convolutions(released):
    adapter = build(iic, "coco-stuff-15-over", released)
    assert list(adapter.taps) == ["trunk", "head", "head.1"]
    assert adapter.default_tap == "head"
    with torch.no_grad():
        first, second = adapter(golden_input("rect"), ["head", "head.1"]).values()
    assert first.shape == second.shape == (1, 45, 40, 56)
    assert not torch.equal(first, second)


def test_files_of_other_runs_are_told_apart_and_read_as_files_of_the_users(released, tmp_path):
    (tmp_path / "iic_555.pytorch").write_bytes((released / "iic_512.pytorch").read_bytes())
    with pytest.raises(CheckpointError, match=r"laid out otherwise.*head_A.heads.0.0.weight \(15, 512, 1, 1\)"):
        build(iic, "coco-stuff-3", tmp_path)
    own = IICNetwork({"head_A": 63, "head_B": 21})
    torch.save({"net": own.state_dict(), "optimiser": {}}, tmp_path / "voc.pytorch")
    adapter = build(iic, str(tmp_path / "voc.pytorch"), tmp_path)
    assert adapter.taps["head_B"].channels == 21
    assert state_sha256(adapter.body) == state_sha256(own)


def test_networks_that_read_infrared_are_refused(tmp_path):
    state = IICNetwork({"head_A": 24, "head_B": 3}).state_dict()
    state["trunk.features.0.weight"] = torch.zeros(64, 4, 3, 3)
    torch.save({"net": state}, tmp_path / "545.pytorch")
    with pytest.raises(CheckpointError, match="and infrared, as the networks for Potsdam do"):
        build(iic, f"{tmp_path}/545.pytorch", tmp_path)


def test_other_files_are_refused(tmp_path):
    torch.save({"net": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "other.pytorch")
    for module in (iic, cooccurrence):
        with pytest.raises(CheckpointError, match="does not hold the network"):
            build(module, f"{tmp_path}/other.pytorch", tmp_path)


def test_a_file_that_is_not_there_says_where_to_get_it(tmp_path):
    by_hand = r"models\.tar\.gz and put it at .*, or take 512/best\.pytorch out of it and put that at .*iic_512"
    with pytest.raises(DownloadError, match=by_hand):
        resolve(iic.CARD, None, weights_dir=tmp_path, fetch=False)
    with pytest.raises(DownloadError, match=r"doersch_isola_models\.tar\.gz, unpack it.* put it at"):
        build(cooccurrence, None, tmp_path)


def test_random_heads_have_the_classes_of_the_data_set(tmp_path):
    adapter = build(iic, "random", tmp_path, classes=7, width=4)
    assert {name: tap.channels for name, tap in adapter.taps.items()} == {"trunk": 32, "head_B": 7, "head_A": 21}
    check_adapter(adapter)
    assert state_sha256(adapter) == state_sha256(build(iic, "random", tmp_path, classes=7, width=4))
    assert sum(p.numel() for p in build(iic, "random", tmp_path).parameters()) == 4_534_464
    check_adapter(build(cooccurrence, "random", tmp_path, width=4))


def test_only_what_is_asked_for_is_computed(tmp_path, monkeypatch):
    adapter = build(iic, "random", tmp_path, width=4)
    monkeypatch.setattr(adapter.body.head_A, "forward", lambda *given: pytest.fail("head A ran"))
    with torch.no_grad():
        assert adapter(torch.zeros(1, 5, 16, 16), ["head_B"])["head_B"].shape == (1, 15, 16, 16)


def test_pictures_too_small_for_the_trunk_are_named(tmp_path):
    with pytest.raises(MismatchError, match="8×40 at the network's input, expected at least 10×10"):
        build(cooccurrence, "random", tmp_path, width=4)(torch.zeros(1, 5, 8, 40), ["trunk"])


def test_a_released_file_of_the_stand_in_leaves_its_head_aside(tmp_path, golden_keys, golden_weights):
    trunk = released_state(Trunk(), lambda network: golden_weights(network, "features."))
    state = {f"features.{key}": value for key, value in trunk.items()}
    for key, shape in golden_keys("iic_isola").items():
        if key.startswith("isola_head."):
            state[key] = torch.zeros(()).expand(shape)  # one number on disk, not a gigabyte
    assert {key: tuple(value.shape) for key, value in state.items()} == golden_keys("iic_isola")
    torch.save(state, tmp_path / "cooccurrence_isola.pytorch")
    adapter = build(cooccurrence, None, tmp_path)
    assert (adapter.account["taken"], len(adapter.account["outside"])) == (36, 10)
    golden = np.load(GOLDEN / "iic_isola.npz")
    with torch.no_grad():
        maps = adapter(golden_input("sq"), ["trunk"])["trunk"]
    assert near(maps, golden["trunk"], (32, 2, 2))
    resized = functional.interpolate(maps, (64, 64), mode="bilinear", align_corners=False)
    assert near(resized, golden["penultimate"], (32, 4, 4))


def run_folder(root: Path, network: Any) -> Path:
    (root / "checkpoints").mkdir(parents=True)
    (root / "record.json").write_text("{}")
    held = {"format": 1, "step": 5, "architecture": network.describe(), "model": network.state_dict(), "record": {}}
    torch.save(held, root / "checkpoints" / "step-5.pt")
    return root


def test_run_folders_name_their_architecture(tmp_path):
    network = IICNetwork({"head_A": 8, "head_B": 4}, width=4)
    folder = run_folder(tmp_path / "run", network)
    adapter = build(iic, str(folder), tmp_path, classes=9)
    assert adapter.taps["head_A"].channels == 8
    assert state_sha256(adapter.body) == state_sha256(network)
    with pytest.raises(CheckpointError, match=r"a trunk of width 4, not 64: drop --set iic\.width=64"):
        build(iic, str(folder), tmp_path, width=64)
    pair = CooccurrenceNetwork(11, width=4, branch=8)
    folder = run_folder(tmp_path / "pair", pair)
    adapter = build(cooccurrence, str(folder), tmp_path)
    assert state_sha256(adapter.body) == state_sha256(pair.features)
    with pytest.raises(CheckpointError, match="not one of iic"):
        build(iic, str(folder), tmp_path)


def test_the_cards_say_what_is_uncertain():
    for one in (*iic.CARD.checkpoints, *cooccurrence.CARD.checkpoints):
        assert "not opened" in one.verified or "not seen" in one.verified
    assert {one.member for one in iic.CARD.checkpoints} == {f"{model}/best.pytorch" for model in (496, 512, 521, 555)}
    assert "stand-in" in cooccurrence.CARD.notes
    assert "Not known are the network, the patch size" in cooccurrence.CARD.notes
