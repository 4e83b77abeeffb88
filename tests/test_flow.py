"""The whole flow, from the command line to rows and tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.store import Store

FLOORS = ("oracle", "noise", "colour")


def rows_of(output: str) -> dict[tuple[str, str, int], dict]:
    return {(r["run"]["method"], r["run"]["protocol"], r["run"]["settings"]["clusters"]): r for r in json.loads(output)}


def floors(voc: Path, *more: object) -> list[object]:
    methods = [word for name in FLOORS for word in ("--method", name)]
    return ["eval", *methods, "--protocol", "kmeans", "--dataset", voc, "--seeds", 2, "--json", *more]


def test_floors_and_ceiling(bench, voc):
    status, out, _ = bench(*floors(voc, "--protocol", "overclustering", "--clusters", "3,8"))
    assert status == 0
    rows = rows_of(out)
    assert len(rows) == 9
    for protocol, clusters in (("kmeans", 3), ("overclustering", 3)):
        for scores in rows["oracle", protocol, clusters]["per_seed"]:
            assert {rule: figures["miou"] for rule, figures in scores["scores"].items()} == dict.fromkeys(
                scores["scores"], 1.0
            )
    noise = rows["noise", "kmeans", 3]["mean"]
    assert abs(noise["scores"]["one_to_one_iou"]["miou"] - noise["null"]["one_to_one_iou"]["miou"]) < 0.02
    assert rows["colour", "kmeans", 3]["mean"]["scores"]["one_to_one_iou"]["miou"] > 0.5
    assert rows["oracle", "overclustering", 8]["mean"]["empty"] > 0
    assert all(row["dropped"] == 0 for row in rows.values())


def test_an_arbitrary_timm_network_and_a_readable_table(bench, voc):
    status, out, err = bench(
        "eval",
        "--method",
        "timm:resnet18@random",
        "--method",
        "colour",
        "--protocol",
        "kmeans",
        "--dataset",
        voc,
        "--seeds",
        2,
    )
    assert status == 0
    assert "timm:resnet18@random" in out
    assert "1-1 pixels" in out
    assert "6 pictures" in err


def test_finished_rows_are_read_and_more_seeds_are_added(bench, voc, monkeypatch):
    first = rows_of(bench(*floors(voc))[1])
    with monkeypatch.context() as patched:
        patched.setattr("bench.evaluate.build", lambda *_: pytest.fail("a finished row must not build its method"))
        assert rows_of(bench(*floors(voc))[1]) == first
    more = rows_of(bench(*floors(voc)[:-1], "--json", "--seeds", 3)[1])
    for name, row in more.items():
        assert row["seeds"] == [0, 1, 2]
        assert row["per_seed"][:2] == first[name]["per_seed"]
    files = sorted(path.name for path in Path(Store(_results()).folder).glob("*.json"))
    assert len(files) == 6


def _results() -> Path:
    from bench import paths

    return paths.results_root()


def headline(output: str) -> dict:
    return {name: [s["scores"] for s in row["per_seed"]] for name, row in rows_of(output).items()}


@pytest.mark.parametrize(
    "change",
    [("--workers", 0), ("--workers", 3), ("--batch-size", 1), ("--batch-size", 5)],
    ids=lambda change: "".join(map(str, change)),
)
def test_a_score_does_not_depend_on_workers_or_batches(bench, voc, change):
    words = ("--method", "timm:resnet18@random", "--again")
    plain = headline(bench(*floors(voc, *words))[1])
    assert headline(bench(*floors(voc, *words, *change))[1]) == plain


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_score_does_not_depend_on_the_cache(bench, voc, monkeypatch, dtype):
    words = ("--method", "timm:resnet18@random", "--again", "--set", f"dtype={dtype}")
    cold = headline(bench(*floors(voc, *words))[1])
    warm = headline(bench(*floors(voc, *words))[1])
    monkeypatch.setattr("bench.cache.Cache.room_for", lambda self, nbytes: False)
    without = headline(bench(*floors(voc, *words, "--cache", voc / "elsewhere"))[1])
    assert cold == warm == without


def test_other_clusters_are_served_from_the_cache(bench, voc, monkeypatch):
    bench(*floors(voc, "--method", "timm:resnet18@random"))
    monkeypatch.setattr("bench.features.SplitMaps.compute", lambda self: pytest.fail("a forward pass was made"))
    status, out, _ = bench(
        *floors(voc, "--method", "timm:resnet18@random", "--protocol", "overclustering", "--clusters", "5")
    )
    assert status == 0
    assert ("timm:resnet18", "overclustering", 5) in rows_of(out)


def test_a_torn_cache_entry_is_made_anew(bench, voc, tmp_path):
    cold = headline(bench(*floors(voc))[1])
    for file in (tmp_path / "cache").rglob("maps.bin"):
        file.write_bytes(file.read_bytes()[:-8])
    for file in (tmp_path / "cache").rglob("vectors.bin"):
        file.unlink()
    status, out, err = bench(*floors(voc, "--again"))
    assert status == 0
    assert "made anew" in err
    assert headline(out) == cold


def test_a_method_from_a_file(bench, voc, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom bench.backbone import Backbone\n\n"
        "def factory():\n    return Backbone(torch.nn.Conv2d(3, 6, 4, stride=4), stride=4, channels=6)\n"
    )
    status, out, _ = bench(
        "eval", "--method", f"{file}:factory", "--protocol", "kmeans", "--dataset", voc, "--seeds", 1, "--json"
    )
    assert status == 0
    row = rows_of(out)["mine.factory", "kmeans", 3]
    assert len(row["run"]["checkpoint"]["sha256"]) == 64
    left = list((tmp_path / "cache").rglob("maps.bin"))
    assert left == [], "maps of code that nobody can fingerprint must not outlive the command"


def test_predictions_have_the_size_of_their_pictures(bench, voc):
    status, _, _ = bench(*floors(voc, "--save-predictions"))
    assert status == 0
    folders = sorted(_results().glob("*-predictions"))
    assert len(folders) == 3
    oracle = next(
        f for f in folders if json.loads((f.parent / f"{f.name[:-12]}.json").read_text())["run"]["method"] == "oracle"
    )
    for name in (voc / "ImageSets/Segmentation/val.txt").read_text().split():
        label = np.array(Image.open(voc / "SegmentationClass" / f"{name}.png"))
        predicted = np.array(Image.open(oracle / f"{name}.png"))
        assert predicted.shape == label.shape
        assert (predicted == label)[label != 255].all()


def test_dry_run_prices_and_writes_nothing(bench, voc, tmp_path):
    status, out, _ = bench(
        "eval", "--method", "swav", "--method", "noise", "--protocol", "kmeans", "--dataset", voc, "--dry-run"
    )
    assert status == 0
    assert "6 pictures" in out
    assert "6 forward passes" in out
    assert "GB of disk free" in out
    assert "have to be fetched first" in out
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "results").exists()


def test_tables_of_what_was_stored(bench, voc, tmp_path):
    bench(*floors(voc))
    for name, needle in (
        ("csv", "many_to_one_pixels"),
        ("latex", "toprule"),
        ("markdown", "| oracle"),
        ("html", "<table"),
    ):
        status, out, _ = bench("table", "--format", name)
        assert status == 0
        assert needle in out
    status, out, _ = bench("table", "--format", "html", "--output", tmp_path / "table.html")
    assert (status, out) == (0, "")
    assert "oracle" in (tmp_path / "table.html").read_text()


def test_doctor_opens_everything(bench, voc):
    status, out, _ = bench("doctor", "--dataset", voc, "--method", "timm:resnet18@random", "--device", "cpu")
    assert status == 0, out
    assert "FAIL" not in out
    (voc / "JPEGImages" / "val2.jpg").write_bytes((voc / "JPEGImages" / "val2.jpg").read_bytes()[:200])
    (voc / "SegmentationClass" / "val1.png").unlink()
    status, out, _ = bench("doctor", "--dataset", voc, "--device", "cpu")
    assert status == 2
    assert "val2" in out
    assert "val1" in out


def test_train_split_can_be_clustered(bench, voc):
    status, out, _ = bench(*floors(voc, "--set", "kmeans.fit=train"))
    assert status == 0
    assert rows_of(out)["oracle", "kmeans", 3]["mean"]["scores"]["one_to_one_iou"]["miou"] == 1.0
