"""Protocols that learn from the train split, from the command line: rows, resume after a kill, processes, painting."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import paths
from bench.features import SplitMaps
from bench.store import Store

ROOT = Path(__file__).parents[1]
PROBE = ("--method", "colour", "--protocol", "linear:cached", "--set", "colour.stride=8")


def rows_of(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)
    return found


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    (row,) = Store(folder).rows()
    return {name: np.asarray(array) for name, array in Store(folder).arrays(row).items()}


def kill_when_a_checkpoint_is_there(words: list[str], results: Path) -> None:
    """Start a command, and kill it at a random moment after the first checkpoint of its training."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    deadline = time.monotonic() + 120
    while not list(results.glob("training/*/checkpoints/step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(results.glob("*.json")), "the run ended before it could be killed"


def test_a_probe_makes_a_row_with_its_head_and_is_read_the_next_time(bench, voc):
    words = ("eval", *PROBE, "--dataset", voc, "--json", "--set", "linear.epochs=30", "--set", "linear.lr=0.1,1")
    status, out, err = bench(*words)
    assert status == 0, err
    (row,) = rows_of(out)
    assert row["seeds"] == [0]
    assert row["headline"]["rule"] == "as_predicted"
    assert row["run"]["dataset"]["train"]["split"] == "train"
    assert row["per_seed"][0]["tried"].keys() == {"lr=0.1", "lr=1"}
    kept = arrays_of(paths.results_root())
    assert kept["seed0_weight"].shape == (3, 3)
    (training,) = (paths.results_root() / "training").iterdir()
    assert list(training.glob("tensorboard/events*"))
    assert not (training / "checkpoints").exists()
    again = bench(*words)
    assert rows_of(again[1]) == [row]
    assert "step" not in again[2]


def test_augmented_and_cached_probes_share_the_scored_maps(bench, voc, monkeypatch):
    passes = []
    forward = SplitMaps._forward

    def counted(self, pictures, labels, taps):
        passes.append(len(pictures))
        return forward(self, pictures, labels, taps)

    monkeypatch.setattr(SplitMaps, "_forward", counted)
    words = ("eval", "--method", "timm:resnet18@random", "--dataset", voc, "--json", "--set", "linear.epochs=1")
    # beside the augmented ones: 6 scored, 4 of train to standardise by, and the one held out; the second reads them all
    for protocol, pictures in (("linear:native", 6 + 4 + 1), ("linear:cached", 0)):
        status, _, err = bench(*words, "--protocol", protocol)
        assert status == 0, err
        assert sum(passes) == pictures
        passes.clear()


@pytest.mark.parametrize("batch", [1, 4])
def test_without_augmentation_maps_of_every_epoch_are_those_of_the_cache(bench, voc, batch):
    """The same bits where both make them by batches of one picture. Otherwise the batches differ (shuffled ones, and
    those of the list by size), and with them the kernels: a convolution over one picture differs from the same one
    over four by 4e-7 of the largest value, depending on the processor. Standardising would divide that by the deviation
    of each channel, which is tiny where a channel hardly varies: features are taken as they are.
    """
    words = ("eval", "--method", "timm:resnet18@random", "--dataset", voc, "--json", "--batch-size", batch)
    words += ("--set", "linear.epochs=3", "--set", "linear.lr=0.1", "--set", f"linear.batch={batch}")
    words += ("--set", "linear.normalize=none") if batch > 1 else ()
    plain = [word for name in ("flip=0", "rotate=0", "zoom=1,1") for word in ("--set", f"linear.{name}")]
    augmented = ("linear:native", *plain, "--set", "linear.drop_last=false")
    found = []
    for number, protocol in enumerate((("linear:cached",), augmented)):
        folder = paths.results_root() / str(number)
        status, out, err = bench(*words, "--protocol", *protocol, "--results", folder)
        assert status == 0, err
        found.append((rows_of(out)[0]["per_seed"][0], arrays_of(folder)["seed0_weight"]))
    (of_cache, kept), (of_passes, made) = found
    if batch == 1:
        assert of_cache == of_passes
        assert np.array_equal(kept, made)
    np.testing.assert_allclose(made, kept, rtol=0, atol=1e-5 * np.abs(kept).max())
    miou = [of_one["scores"]["as_predicted"]["miou"] for of_one in (of_cache, of_passes)]
    assert miou[0] == pytest.approx(miou[1], abs=1e-3)  # a pixel in doubt may take another class


@pytest.mark.parametrize("preset", ["native", "cached"])
def test_a_killed_probe_ends_with_the_same_bits(bench, voc, tmp_path, preset):
    words = [
        *("eval", *PROBE[:2], "--protocol", f"linear:{preset}", *PROBE[4:], "--dataset", str(voc), "--json"),
        *("--set", "linear.epochs=120", "--set", "linear.batch=2", "--set", "linear.val_every=40"),
    ]
    status, straight, err = bench(*words, "--results", tmp_path / "straight")
    assert status == 0, err
    killed = tmp_path / "killed"
    kill_when_a_checkpoint_is_there([*words, "--results", str(killed), "--workers", "2"], killed)
    status, resumed, err = bench(*words, "--results", killed)
    assert status == 0, err
    assert "training is taken up again after" in err
    assert rows_of(resumed)[0]["per_seed"] == rows_of(straight)[0]["per_seed"]
    one, other = arrays_of(tmp_path / "straight"), arrays_of(killed)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_two_processes_train_the_same_probe(bench, voc, tmp_path):
    words = ["eval", *PROBE, "--dataset", str(voc), "--json", "--set", "linear.epochs=20", "--set", "linear.batch=4"]
    one = bench(*words, "--results", tmp_path / "one")
    assert one[0] == 0, one[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    two = subprocess.run(
        [*launcher, "-m", "bench", *words, "--results", str(tmp_path / "two")],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr[-3000:]
    (row,) = rows_of(two.stdout)
    assert row["run"] == rows_of(one[1])[0]["run"]
    mine, theirs = arrays_of(tmp_path / "one"), arrays_of(tmp_path / "two")
    np.testing.assert_allclose(theirs["seed0_weight"], mine["seed0_weight"], rtol=1e-4, atol=1e-6)
    assert len(list((tmp_path / "two").glob("*.json"))) == 1


def test_a_head_paints_other_pictures_and_scores_again(bench, voc, tmp_path):
    status, out, err = bench(
        "eval", *PROBE, "--dataset", voc, "--json", "--set", "linear.epochs=40", "--save-predictions"
    )
    assert status == 0, err
    (row,) = rows_of(out)
    (saved,) = paths.results_root().glob(f"{row['key']}*-predictions")
    pictures = sorted((voc / "JPEGImages").glob("val*"))
    status, out, err = bench(
        "predict", *pictures, "--method", "colour", "--row", row["key"], "--output", tmp_path / "p"
    )
    assert status == 0, err
    for picture in pictures:
        painted = np.array(Image.open(tmp_path / "p" / f"{picture.stem}.png"))
        assert np.array_equal(painted, np.array(Image.open(saved / f"{picture.stem}.png")))
    status, out, err = bench("eval", *PROBE, "--dataset", voc, "--json", "--set", f"linear.head=row:{row['key']}")
    assert status == 0, err
    assert rows_of(out)[0]["per_seed"][0]["scores"] == row["per_seed"][0]["scores"]
    assert any("nothing was trained" in note for note in rows_of(out)[0]["notes"])
    (voc / "classes.txt").write_text("background\nleft\nother\n")
    status, out, err = bench("eval", *PROBE, "--dataset", voc, "--set", f"linear.head=row:{row['key']}")
    assert (status, "knows the classes background, left, right, the data set has background, left, other" in err) == (
        2,
        True,
    )


def test_scores_do_not_depend_on_whether_maps_are_cached(bench, voc, tmp_path, monkeypatch):
    from bench.cache import Cache

    words = ("eval", "--method", "timm:resnet18@random", "--protocol", "linear:native", "--dataset", voc, "--json",
             "--set", "linear.epochs=2", "--seed", 3)  # fmt: skip
    with_cache = rows_of(bench(*words, "--results", tmp_path / "with")[1])
    monkeypatch.setattr(Cache, "room_for", lambda self, nbytes: False)
    without = rows_of(bench(*words, "--results", tmp_path / "without", "--cache", tmp_path / "none")[1])
    assert without[0]["per_seed"] == with_cache[0]["per_seed"]


def test_the_price_of_a_probe_is_said(bench, voc):
    status, out, err = bench("eval", *PROBE, "--protocol", "kmeans", "--dataset", voc, "--dry-run")
    assert status == 0, err
    assert "4 forward passes for the train split, kept in the cache; 60 epochs read them" in out


def test_several_maps_are_searched_in_one_pass(bench, voc):
    words = ("eval", "--method", "timm:resnet18@random", "--protocol", "linear:cached", "--dataset", voc, "--json")
    status, out, err = bench(*words, "--set", "linear.tap=search", "--set", "linear.epochs=2")
    assert status == 0, err
    (row,) = rows_of(out)
    assert row["run"]["tap"] == "search"
    assert len(row["per_seed"][0]["tried"]) > 1
    assert all(name.startswith("tap=") for name in row["per_seed"][0]["tried"])
    assert "tap=last" not in row["per_seed"][0]["tried"]  # another name of stage4


def test_a_killed_fine_tuning_ends_with_the_same_bits(bench, voc, tmp_path):
    method = [
        *("eval", "--method", "maskcontrast@random", "--protocol", "finetune", "--dataset", str(voc), "--json"),
        *("--set", "maskcontrast.arch=small", "--seeds", "1", "--set", "finetune.decoder=none"),
    ]
    words = [
        *(*method, "--set", "finetune.fractions=100%", "--set", "finetune.iterations=110"),
        *("--set", "finetune.crop=32", "--set", "finetune.batch=2", "--set", "finetune.arm=imagenet-baseline"),
    ]
    status, straight, err = bench(*words, "--results", tmp_path / "straight")
    assert status == 0, err
    killed = tmp_path / "killed"
    kill_when_a_checkpoint_is_there([*words, "--results", str(killed), "--workers", "2"], killed)
    status, resumed, err = bench(*words, "--results", killed)
    assert status == 0, err
    assert "training is taken up again after" in err
    assert rows_of(resumed)[0]["per_seed"] == rows_of(straight)[0]["per_seed"]
    one, other = arrays_of(tmp_path / "straight"), arrays_of(killed)
    assert one.keys() == other.keys()
    assert any(name.startswith("seed0_network/") for name in one)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    row = rows_of(resumed)[0]
    picture = next((voc / "JPEGImages").glob("val1*"))
    painted = bench("predict", picture, "--method", "maskcontrast@random", "--row", row["key"], "--results", killed)
    assert painted[0] == 0, painted[2]
    again = bench(*method, "--results", killed, "--set", f"finetune.network=row:{row['key']}")
    assert again[0] == 0, again[2]
    assert rows_of(again[1])[0]["per_seed"][0]["scores"] == row["per_seed"][0]["scores"]


TUNING = ("eval", "--method", "maskcontrast@random", "--protocol", "finetune", "--json", "--seeds", "1",
          "--set", "maskcontrast.arch=small", "--set", "finetune.iterations=1", "--set", "finetune.crop=32",
          "--set", "finetune.fractions=100%")  # fmt: skip


def test_a_row_of_fine_tuning_says_what_ran(bench, voc, monkeypatch):
    rows = {}
    for words in ((), ("--set", "finetune.decoder=none"), ("--set", "finetune.decoder=none", "--set", "tap=embedding")):
        status, out, err = bench(*TUNING, *words, "--dataset", voc)
        assert status == 0, err
        (rows[words],) = rows_of(out)
    assert len({row["key"] for row in rows.values()}) == 3  # `embedding` is the method's default map, and read here
    settled = [row["per_seed"][0]["settled"] for row in rows.values()]
    assert [(found["map"], found["decoder"]) for found in settled] == [
        ("decoder", "own"), (settled[1]["map"], "none"), ("embedding", "none")]  # fmt: skip
    assert settled[1]["map"] not in ("decoder", "embedding")
    for row, found in zip(rows.values(), settled, strict=True):
        assert [tap["name"] for tap in row["provenance"]["map"]] == [found["map"]]
        assert (found["arm"], found["bn"], found["lr"], found["crop"]) == ("maskcontrast", "frozen", 0.004, 32)
    monkeypatch.setattr("bench.evaluate.build", None)  # finished rows are found without the network
    for words, row in rows.items():
        assert rows_of(bench(*TUNING, *words, "--dataset", voc)[1]) == [row]


def test_every_list_is_kept_and_named_by_its_row(bench, voc):
    named = []
    for words in ((), ("--limit", "2")):
        status, out, err = bench(*TUNING, "--set", "finetune.decoder=none", *words, "--dataset", voc)
        assert status == 0, err
        ((name, file),) = rows_of(out)[0]["per_seed"][0]["lists"].items()
        assert name == "train-random-100%-seed0"
        named.append(sorted((paths.results_root() / file).read_text().split()))
    assert named == [["train0", "train1", "train2", "train3"], ["train0", "train1"]]
    assert len(list((paths.results_root() / "lists").iterdir())) == 2


def test_a_network_that_was_not_kept_is_made_once_more(bench, voc):
    words = (*TUNING, "--set", "finetune.decoder=none", "--dataset", voc)
    status, out, err = bench(*words, "--set", "finetune.keep=false")
    assert status == 0, err
    stored = (*TUNING[:10], "--set", "finetune.decoder=none", "--dataset", voc,
              "--set", f"finetune.network=row:{rows_of(out)[0]['key']}")  # fmt: skip
    status, _, err = bench(*stored)
    assert status == 2
    assert "make it once more with finetune.keep=true and --again" in err.splitlines()[-1]
    assert bench(*words, "--again")[0] == 0
    assert bench(*stored)[0] == 0


EVERY_RANK = """
import os, sys, torch
from bench import cli
from bench.protocols import _finetune
folder, scored = sys.argv.pop(1), _finetune._scored
def keep(work, settings, model):
    torch.save(model.state_dict(), f"{folder}/rank-{os.environ['RANK']}.pt")
    return scored(work, settings, model)
_finetune._scored = keep
cli.main()
"""


@pytest.mark.parametrize("bn", ["train", "frozen"])
def test_two_processes_fine_tune_the_same_network(bench, voc, tmp_path, bn):
    words = [*TUNING, "--set", "finetune.decoder=none", "--set", "finetune.iterations=4", "--set", "finetune.batch=4",
             "--set", "finetune.lr=0.1", "--set", f"finetune.bn={bn}", "--dataset", str(voc)]  # fmt: skip
    script = tmp_path / "every_rank.py"
    script.write_text(EVERY_RANK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    two = subprocess.run(
        [*launcher, str(script), str(tmp_path), *words, "--results", str(tmp_path / "two")],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr[-3000:]
    (row,) = rows_of(two.stdout)
    assert [path.name for path in (tmp_path / "two").glob("*.json")] == [f"{row['key']}-s1.json"]
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(value.any() for name, value in first.items() if name.endswith("running_mean")) is (bn == "train")
    kept = arrays_of(tmp_path / "two")
    assert all(np.array_equal(kept[f"seed0_network/{name}"], value) for name, value in first.items())
    if bn == "frozen":  # then what a picture gives does not depend on those beside it
        one = bench(*words, "--results", tmp_path / "one")
        assert one[0] == 0, one[2]
        assert row["run"] == rows_of(one[1])[0]["run"]
        alone = arrays_of(tmp_path / "one")
        for name, value in first.items():
            np.testing.assert_allclose(value, alone[f"seed0_network/{name}"], rtol=1e-4, atol=1e-6, err_msg=name)
