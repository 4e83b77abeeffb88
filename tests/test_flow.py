"""The whole flow, from the command line to rows and tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from bench.features import SplitMaps
from bench.store import Store

FLOORS = ("oracle", "noise", "colour")


def rows_of(output: str) -> dict[tuple[str, str, int], dict]:
    return {(r["run"]["method"], r["run"]["protocol"], r["run"]["settings"]["clusters"]): r for r in json.loads(output)}


def floors(voc: Path, *more: object) -> list[object]:
    methods = [word for name in FLOORS for word in ("--method", name)]
    return ["eval", *methods, "--protocol", "kmeans", "--dataset", voc, "--seeds", 2, "--json", *more]


@pytest.fixture
def passes(monkeypatch) -> list[tuple[str, ...]]:
    """The names of the pictures of every pass over maps that is computed."""
    seen = []
    compute = SplitMaps.compute

    def counted(maps, *given):
        seen.append(maps.names)
        return compute(maps, *given)

    monkeypatch.setattr("bench.features.SplitMaps.compute", counted)
    return seen


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


def test_a_score_does_not_depend_on_workers(bench, voc):
    words = ("--method", "timm:resnet18@random", "--again")
    plain = headline(bench(*floors(voc, *words))[1])
    for workers in (0, 3):
        assert headline(bench(*floors(voc, *words, "--workers", workers))[1]) == plain


def test_a_score_depends_on_the_size_of_batches_by_rounding_alone(bench, voc):
    """Floors read each picture by itself. A convolution over other batches may take other kernels, whose maps differ
    by 4e-7 of their largest value; K-means then moves few pixels, if any.
    """
    words = ("--method", "timm:resnet18@random", "--again")
    plain = headline(bench(*floors(voc, *words))[1])
    for size in (1, 5):
        other = headline(bench(*floors(voc, *words, "--batch-size", size))[1])
        for name, seeds in plain.items():
            if name[0] in FLOORS:
                assert other[name] == seeds
            for one, two in zip(seeds, other[name], strict=True):
                for rule, figures in one.items():
                    assert two[rule]["miou"] == pytest.approx(figures["miou"], abs=5e-3), (name, rule)


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


def test_predictions_that_are_there_are_not_painted_again(bench, voc, tmp_path, monkeypatch, passes):
    file = tmp_path / "mine.py"  # known only when built: its row is found then, and still nothing is painted
    file.write_text(
        "import torch\nfrom bench.backbone import Backbone\n\ndef factory():\n    torch.manual_seed(0)\n"
        "    return Backbone(torch.nn.Conv2d(3, 6, 4, stride=4), stride=4, channels=6, fingerprint='mine')\n"
    )
    words = floors(voc, "--protocol", "hummingbird", "--method", f"{file}:factory", "--save-predictions")
    status, first, err = bench(*words)
    assert status == 0, err
    folders = sorted(_results().glob("*-predictions"))
    assert len(folders) == 8
    assert all(len(list(folder.glob("*.png"))) == 6 for folder in folders)
    assert passes
    passes.clear()
    assert bench(*words)[1] == first
    assert not passes
    with monkeypatch.context() as patched:
        patched.setattr("bench.evaluate.build", lambda *_: pytest.fail("nothing is left to do"))
        assert bench(*floors(voc, "--save-predictions"))[0] == 0
    lost = next(path for path in folders[0].glob("*.png"))
    before = lost.read_bytes()
    lost.unlink()
    assert bench(*words)[0] == 0
    assert lost.read_bytes() == before


@pytest.mark.parametrize(
    ("first", "words", "seen"),
    [
        ("timm:resnet18@random", ("colour", "--set", "kmeans.tap=last"), "colour has no map 'last'"),
        ("maskcontrast@random", ("colour", "--protocol", "retrieval"), "colour gives no foreground of its own"),
        ("timm:resnet18@random", ("colour", "--protocol", "finetune"), "colour has no weights"),
        ("timm:resnet18@random", ("noise", "--protocol", "linear", "--set", "linear.head=row:00"), "no row '00'"),
        ("timm:resnet18@random", ("timm:mixer_s32_224@random",), "takes pictures of 224×224 only"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_method_computes(bench, voc, monkeypatch, first, words, seen):
    monkeypatch.setattr("bench.features.SplitMaps.compute", lambda *_: pytest.fail("a forward pass was made"))
    protocol = ("--protocol", "kmeans", "--dataset", voc, "--seeds", 1)
    status, _, err = bench("eval", "--method", first, *protocol, "--method", *words)
    assert status == 2
    assert seen in err


@pytest.mark.parametrize(
    "protocol",
    [
        *(
            ("kmeans", "--set", f"kmeans.engine={engine}", "--set", "kmeans.pca=0")
            for engine in ("faiss", "torch", "sklearn")
        ),
        ("kmeans", "--set", "kmeans.pca=2"),
        ("kmeans", "--set", "kmeans.pca=0", "--set", "kmeans.foreground=masks:gt"),
        ("hummingbird",),
        ("retrieval", "--set", "retrieval.foreground=masks:gt"),
    ],
    ids=" ".join,
)
def test_features_that_are_huge_or_tiny_score_as_they_do_at_an_ordinary_scale(bench, voc, tmp_path, protocol):
    """faiss answered -1 for vectors whose squares leave float32, and the engines disagreed."""
    (voc / "saliency_gt").mkdir()
    for path in (voc / "SegmentationClass").glob("*.png"):
        label = np.array(Image.open(path))
        Image.fromarray(np.where((label > 0) & (label < 255), 255, 0).astype(np.uint8)).save(
            voc / "saliency_gt" / path.name
        )
    scores = []
    for factor in ("1.0", "2.0**66", "2.0**-83"):
        file = tmp_path / "mine.py"
        file.write_text(
            "import torch\nfrom bench.backbone import Backbone\n\nclass Net(torch.nn.Conv2d):\n"
            f"    def forward(self, x):\n        return super().forward(x) * {factor}\n\n"
            "def factory():\n    torch.manual_seed(0)\n"
            "    return Backbone(Net(3, 12, 4, stride=4, bias=False), stride=4, channels=12)\n"
        )
        words = ("eval", "--method", f"{file}:factory", "--dataset", voc, "--seeds", 1, "--json", "--protocol")
        status, out, err = bench(*words, *protocol)
        assert status == 0, err
        scores.append(json.loads(out)[0]["per_seed"][0]["scores"])
    assert scores[0] == scores[1] == scores[2]


def test_edited_code_of_a_method_makes_maps_anew(bench, voc, monkeypatch, passes):
    words = ("eval", "--method", "timm:resnet18@random", "--protocol", "kmeans", "--dataset", voc, "--again")
    assert bench(*words)[0] == 0
    assert len(passes) == 1
    assert bench(*words)[0] == 0
    assert len(passes) == 1
    asked = []
    monkeypatch.setattr("bench.work.code_digest", lambda *names: asked.append(names) or "another")
    assert bench(*words)[0] == 0
    assert len(passes) == 2
    assert any("bench.adapters.*" in names and "bench.features" in names for names in asked)
    assert any("bench.protocols.*" in names and "bench.cluster" in names for names in asked)


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


MINE = """
import torch
from bench.backbone import Backbone

def factory():
    torch.manual_seed({seed})
    return Backbone(torch.nn.Conv2d(3, 6, 4, stride=4), stride=4, channels=6, fingerprint="conv v1")
"""


def test_a_users_fingerprint_does_not_hide_other_weights_or_code(bench, voc, tmp_path):
    keys = set()
    for seed in (1, 2):
        (tmp_path / "mine.py").write_text(MINE.format(seed=seed))
        method = f"{tmp_path / 'mine.py'}:factory"
        _, out, _ = bench("eval", "--method", method, "--protocol", "kmeans", "--dataset", voc, "--seeds", 1, "--json")
        keys.add(json.loads(out)[0]["key"])
    assert len(keys) == 2


def test_the_part_of_a_file_that_is_read_is_part_of_the_row(bench, voc, tmp_path):
    torch.manual_seed(0)
    one, other = (timm.create_model("resnet18", num_classes=0) for _ in range(2))
    both = {f"encoder_q.{key}": value for key, value in one.state_dict().items()}
    both |= {f"encoder_k.{key}": value for key, value in other.state_dict().items()}
    torch.save(both, tmp_path / "both.pth")
    scores = {}
    for prefix in ("encoder_q.", "encoder_k."):
        status, out, err = bench(
            *("eval", "--method", f"timm:resnet18@{tmp_path / 'both.pth'}", "--protocol", "kmeans", "--seeds", 1),
            *("--set", f"checkpoint.prefix={prefix}", "--dataset", voc, "--json"),
        )
        assert status == 0, err
        scores[prefix] = json.loads(out)[0]
    assert scores["encoder_q."]["key"] != scores["encoder_k."]["key"]
    assert scores["encoder_q."]["per_seed"] != scores["encoder_k."]["per_seed"]


def test_the_split_that_is_clustered_is_part_of_the_row(bench, voc):
    words = floors(voc, "--set", "kmeans.fit=train")
    before = {row["key"] for row in json.loads(bench(*words)[1])}
    names = voc / "ImageSets/Segmentation/train.txt"
    names.write_text("\n".join(names.read_text().split()[:2]) + "\n")
    after = {row["key"] for row in json.loads(bench(*words)[1])}
    assert not before & after


def test_a_limit_that_cuts_nothing_is_no_other_run(bench, voc):
    before = {row["key"] for row in json.loads(bench(*floors(voc))[1])}
    assert {row["key"] for row in json.loads(bench(*floors(voc, "--limit", 6))[1])} == before
    assert not {row["key"] for row in json.loads(bench(*floors(voc, "--limit", 3))[1])} & before


def test_again_replaces_what_is_read_and_other_seeds_are_said(bench, voc):
    bench(*floors(voc, "--seeds", 3))
    _, out, err = bench(*floors(voc, "--again"))
    assert all(row["seeds"] == [0, 1, 2] for row in json.loads(out))
    assert "over seeds [0, 1, 2]" in err
    assert len(list(_results().glob("*.r2.json"))) == 3


def test_dry_run_does_not_take_a_random_twin_for_the_missing_weights(bench, voc):
    bench("eval", "--method", "swav@random", "--protocol", "kmeans", "--dataset", voc, "--seeds", 1, "--limit", 1)
    words = ("eval", "--method", "swav", "--protocol", "kmeans", "--dataset", voc, "--seeds", 1, "--limit", 1)
    _, out, _ = bench(*words, "--dry-run")
    assert "1 forward passes" in out
    assert "0 rows finished" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--set", "checkpoint.prefix=x."), "no method here reads one"),
        (("--set", "checkpoint.seed=3"), "no method here is @random"),
    ],
)
def test_checkpoint_settings_that_nobody_reads_are_refused(bench, voc, words, says):
    status, _, err = bench(*floors(voc, *words))
    assert status == 2
    assert says in err
