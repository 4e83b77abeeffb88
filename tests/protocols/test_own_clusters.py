"""`kmeans` on a map of the network's own clusters: matching alone; and which map a protocol reads by default."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from bench import images
from bench.contracts import Scope
from bench.datasets import FolderDataset
from bench.errors import SettingError
from bench.metrics import Counts, count_pixels, evaluate
from bench.networks.iic import IICNetwork, network_input
from bench.protocols import kmeans
from bench.protocols._clustering import run
from bench.settings import apply
from bench.testing import MemorySplit, MemoryWork

CARD = kmeans.CARD
RANDOM = ("--method", "iic@random", "--set", "iic.width=4")


def variant(own: int, **changes: Any):
    settings = apply(CARD.settings(), changes, CARD.name)
    (one,) = kmeans.expand(settings, Scope(classes=3, device="cpu", vectors=100, own_clusters=own))
    return one


def test_the_likeliest_cluster_is_matched_and_nothing_is_clustered():
    rng = np.random.default_rng(0)
    maps = [rng.random((6, 4, 5)).astype(np.float32) for _ in range(3)]
    labels = [rng.integers(0, 3, (12, 8)).astype(np.uint8) for _ in maps]
    work = MemoryWork(MemorySplit(maps=maps, labels=labels, kind="cluster_prob"), classes=3)
    wanted = variant(5)
    outcome = run(work, wanted.settings, 0)
    tables = [
        count_pixels(one.argmax(2).repeat(2, 0).repeat(2, 1), label, 5, 3)
        for one, label in zip(maps, labels, strict=True)
    ]
    assert np.array_equal(outcome.counts.dense(), tables)
    assert not wanted.seeded
    assert wanted.notes == ("the network's own 5 clusters, the likeliest of each pixel: matched only, without K-means",)


@pytest.mark.parametrize(
    "changes", [{"clusters": 4}, {"foreground": "masks:true"}, {"unit": "object"}, {"background": "saliency"}]
)
def test_what_would_need_k_means_is_refused(changes):
    ((key, value),) = changes.items()
    with pytest.raises(SettingError, match=rf"^{key}={value} does not go with a map of 5 clusters.*kmeans\.tap=NAME"):
        variant(5, **changes)
    assert variant(5, clusters=5).settings.clusters == 5


def evaluated(bench, *words: object) -> tuple[list[dict[str, Any]], str]:
    status, out, err = bench("eval", "--json", "--seeds", 2, *words)
    assert status == 0, err
    return json.loads(out), err


def test_each_protocol_reads_a_map_of_its_kind(bench, voc):
    both = ("--protocol", "kmeans", "--protocol", "overclustering", "--clusters", 6, "--dataset", voc)
    (own, over), _ = evaluated(bench, *RANDOM, *both)
    assert (own["run"]["tap"], over["run"]["tap"]) == ("head_B", "trunk")
    assert own["run"]["settings"]["clusters"] == 3
    assert (own["seeds"], over["seeds"]) == ([0], [0, 1])
    assert any("matched only" in note for note in own["notes"])
    again, _ = evaluated(bench, *RANDOM, *both)
    assert [row["key"] for row in again] == [own["key"], over["key"]]
    assert [row["seconds"] for row in again] == [own["seconds"], over["seconds"]]
    (head_a,), _ = evaluated(bench, *RANDOM, *both[:2], "--dataset", voc, "--set", "kmeans.tap=head_A")
    assert (head_a["run"]["tap"], head_a["run"]["settings"]["clusters"]) == ("head_A", 9)
    (trunk,), _ = evaluated(bench, *RANDOM, *both[:2], "--dataset", voc, "--set", "kmeans.tap=trunk")
    assert trunk["seeds"] == [0, 1]


def test_the_methods_figures_stand_in_one_line_beside_those_of_others(bench, voc):
    words = ("--protocol", "kmeans", "--protocol", "overclustering", "--clusters", 6, "--protocol", "linear:cached")
    status, out, err = bench("eval", *RANDOM, "--method", "colour", *words, "--dataset", voc, "--seeds", 1,
                             "--set", "linear.epochs=1")  # fmt: skip
    assert status == 0, err
    assert len([line for line in out.split("\n\n")[0].splitlines() if line.startswith("iic")]) == 1
    assert "–" not in out.split("\n\n")[0]
    evaluated(bench, *RANDOM, *words[:1], "kmeans", "--dataset", voc, "--set", "kmeans.tap=trunk")
    status, out, err = bench("table")
    assert [line for line in out.splitlines() if "iic@random trunk width=4" in line], out


def test_k_is_the_networks_and_the_counts_are_those_of_its_output(bench, voc, tmp_path):
    torch.manual_seed(0)
    network = IICNetwork({"head_A": 10, "head_B": 5}, width=4).eval()
    torch.save({"net": network.state_dict()}, tmp_path / "own.pytorch")
    words = ("--method", f"iic@{tmp_path / 'own.pytorch'}", "--set", "iic.width=4", "--protocol", "kmeans")
    (row,), _ = evaluated(bench, *words, "--dataset", voc, "--size", "64x48")
    data, tables = FolderDataset(voc), []
    for name in data.names("val"):
        picture = images.resize_picture(data.picture(name), (64, 48), "bicubic")
        with torch.no_grad():
            inputs = network_input(torch.from_numpy(picture).permute(2, 0, 1)[None])
            ids = network(inputs, ["head_B"])["head_B"][0].argmax(1)[0].numpy()
        label = data.label(name)
        at = [images.cell_index(p, c, c, 1) for p, c in zip(label.shape, (64, 48), strict=True)]
        tables.append(count_pixels(ids[at[0][:, None], at[1]], label, 5, 3))
    wanted = evaluate(Counts.from_dense(tables), background=0, seed=0)["scores"]
    assert row["run"]["settings"]["clusters"] == 5
    for rule in ("one_to_one_iou", "one_to_one_pixels", "many_to_one_pixels"):
        assert row["per_seed"][0]["scores"][rule]["pixel_accuracy"] == wanted[rule]["pixel_accuracy"]


def test_pictures_are_painted_with_the_networks_clusters(bench, voc, tmp_path):
    pictures = voc / "JPEGImages" / "val0.jpg"
    status, _, err = bench("predict", pictures, *RANDOM, "--clusters", 4, "--output", tmp_path / "maps")
    assert status == 0, err
    assert (tmp_path / "maps" / "val0.png").is_file()
    (row,), _ = evaluated(bench, *RANDOM, "--protocol", "kmeans", "--dataset", voc)
    status, _, err = bench(
        "predict", pictures, "--method", "iic@random", "--row", row["key"], "--output", tmp_path / "by-row"
    )
    assert status == 0, err
    assert (tmp_path / "by-row" / "val0.png").is_file()
