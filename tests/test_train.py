"""`bench train` from the command line: run folders, resume after a kill, several processes, and what is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import registry, weights
from bench.adapters.maskcontrast import CARD
from bench.checkpoints import read_checkpoint
from bench.contrast import MaskContrast
from bench.records import AdapterRequest

KEYS = Path(__file__).parent / "golden" / "maskcontrast_resnet50_keys.txt"
TINY = (
    "batch=4", "queue=8", "augment.size=32", "run.log_every=2", "run.save_every=2", "run.panel_every=4", "warmup=0",
)  # fmt: skip


@pytest.fixture
def data(voc) -> Path:
    """The small VOC folder; its 4 train pictures, and 4 of val beside them, have masks."""
    (voc / "saliency_clean").mkdir()
    for label in sorted((voc / "SegmentationClass").glob("*.png")):
        ids = np.array(Image.open(label))
        Image.fromarray(((ids == 1) | (ids == 2)).astype(np.uint8) * 255).save(voc / "saliency_clean" / label.name)
    lists = voc / "ImageSets/Segmentation"
    names = [*(lists / "train.txt").read_text().split(), *(lists / "val.txt").read_text().split()[:5]]
    (lists / "train.txt").write_text("\n".join(names) + "\n")
    return voc


def words(data: Path, output: Path, *more: object, steps: int = 6) -> list[object]:
    changes = [word for setting in TINY for word in ("--set", setting)]
    base = ["train", "maskcontrast", "--dataset", data, "--output", output, "--device", "cpu", "--steps", steps]
    return [*base, *changes, *more]


def checkpoint_path(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step}.pt"


def checkpoint(output: Path, step: int) -> dict:
    return read_checkpoint(checkpoint_path(output, step))


def same_bits(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_bits(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def state_of(held: dict) -> dict:
    return {"model": held["model"], "optimizer": held["optimizer"], "step": held["step"]}


def test_a_run_from_beginning_to_end(bench, data, tmp_path):
    status, out, err = bench(*words(data, tmp_path / "run"))
    assert status == 0, err
    assert out.strip() == str(tmp_path / "run")
    first, second, *_, last = (line for line in err.strip().splitlines() if "OMP_NUM_THREADS" not in line)
    assert "preset small (version 1)" in first
    assert "9 pictures of the split train with masks clean, small from random, 6 steps of 4 pictures" in second
    assert f"bench eval --method maskcontrast@{tmp_path / 'run'} --protocol kmeans --dataset {data}" in last

    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["settings"]["augment"]["size"] == 32
    assert record["preset"] == {"name": "small", "version": 1}
    assert record["data"]["pictures"] == 9
    assert record["course"] == {"steps": 6, "batch": 4, "queue": 8, "steps_per_epoch": 2}
    held = checkpoint(tmp_path / "run", 6)
    assert held["architecture"] == record["architecture"]
    assert held["record"] == {key: value for key, value in record.items() if key != "format"}
    assert {key.partition(".")[0] for key in held["model"]} == {"model_q", "model_k", "queue", "queue_ptr"}
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-4.pt", "step-6.pt"]


def test_other_choices_train_too(bench, data, tmp_path):
    losses = ("resolution=input", "class_weights=none", "saliency_loss=plain")
    sets = [word for change in ("freeze=true", "optimizer=sgd", "decay=epoch", *losses) for word in ("--set", change)]
    status, _, err = bench(*words(data, tmp_path / "run", *sets, "--precision", "bf16", "--seed", 2**40, steps=4))
    assert status == 0, err
    first, last = checkpoint(tmp_path / "run", 2)["model"], checkpoint(tmp_path / "run", 4)["model"]
    moved = {key for key in first if key.startswith("model_q") and not torch.equal(first[key], last[key])}
    assert "model_q.head.weight" in moved
    assert not {key for key in moved if key.startswith(("model_q.backbone.conv1", "model_q.backbone.layer1"))}
    assert last["model_q.head.weight"].dtype == torch.float32


def test_figures_and_panels_are_in_tensorboard(bench, data, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    bench(*words(data, tmp_path / "run"))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    wanted = {"loss", "contrastive", "saliency", "foreground", "lr", "pictures_per_second"}
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert 0 < events.Scalars("foreground")[0].value < 1
    (shown,) = events.Images("panel")
    assert (shown.step, shown.width, shown.height) == (4, 4 * 32, 4 * 32)


def test_a_killed_run_resumes_to_the_same_bits_whatever_the_workers(bench, data, tmp_path):
    assert bench(*words(data, tmp_path / "straight", "--workers", 0, steps=20))[0] == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *map(str, words(data, killed, "--workers", 2, steps=20))],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not list((killed / "checkpoints").glob("step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "checkpoints" / "step-20.pt").exists(), "the run ended before it could be killed"
    status, _, err = bench(*words(data, killed, "--workers", 1, "--resume", steps=20))
    assert status == 0, err
    assert "resumed at step" in err
    assert same_bits(state_of(checkpoint(tmp_path / "straight", 20)), state_of(checkpoint(killed, 20)))
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["step-18.pt", "step-20.pt"]


@pytest.mark.parametrize("shell", ["1", "4"])
def test_weights_are_those_of_the_seed_whatever_the_shell(bench, data, tmp_path, monkeypatch, shell):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    status, _, err = bench(*words(data, tmp_path / "here", "--workers", 0, steps=4))
    assert (status, "is not used" in err) == (0, False), err
    assert "2 threads" in err.splitlines()[0]
    other = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, words(data, tmp_path / "there", "--workers", 0, steps=4))],
        env={**os.environ, "OMP_NUM_THREADS": shell}, cwd=Path(__file__).parents[1], check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert other.stderr.count(f"OMP_NUM_THREADS={shell} is not used: training runs with 2 threads") == 1
    assert same_bits(state_of(checkpoint(tmp_path / "here", 4)), state_of(checkpoint(tmp_path / "there", 4)))


def test_threads_and_kernels_are_kept_and_used_again(bench, data, tmp_path, monkeypatch):
    seen = set()
    step = MaskContrast.step

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.add((torch.get_num_threads(), torch._C._get_mkldnn_enabled()))
        return step(*arguments, **options)

    monkeypatch.setattr(MaskContrast, "step", watched)
    before = torch.get_num_threads()
    status, _, err = bench(*words(data, tmp_path / "run", "--threads", 3, "--deterministic", steps=4))
    assert (status, seen, torch.get_num_threads()) == (0, {(3, False)}, before), err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["threads"], record["deterministic"]) == (3, True)

    shutil.rmtree(tmp_path / "run" / "checkpoints")
    status, _, err = bench(*words(data, tmp_path / "run", "--resume", steps=4))
    assert (status, seen) == (0, {(3, False)}), err
    status, _, err = bench(*words(data, tmp_path / "run", "--resume", "--threads", 1, steps=4))
    assert (status, "threads: 3 there, 1 here" in err.splitlines()[-1]) == (2, True)


def test_oneDNN_is_not_turned_off_on_the_way(bench, data, tmp_path):
    assert bench(*words(data, tmp_path / "run", steps=2))[0] == 0
    status, _, err = bench(*words(data, tmp_path / "run", "--resume", "--deterministic", steps=2))
    assert (status, "deterministic: False there, True here" in err.splitlines()[-1]) == (2, True)


def test_a_run_without_a_name_keeps_its_threads_too(bench, data, tmp_path):
    plain = [word for word in words(data, tmp_path, steps=2) if word not in ("--output", tmp_path)]
    assert bench(*plain, "--threads", 1)[0] == 0
    status, _, err = bench(*plain, "--resume")
    assert (status, "1 thread" in err.splitlines()[0]) == (0, True), err


def test_a_run_from_before_threads_were_kept_goes_on(bench, data, tmp_path):
    assert bench(*words(data, tmp_path / "run", steps=2))[0] == 0
    path = tmp_path / "run" / "record.json"
    record = json.loads(path.read_text())
    del record["threads"], record["deterministic"], record["data"]["without_foreground"]
    path.write_text(json.dumps(record))
    status, _, err = bench(*words(data, tmp_path / "run", "--resume", steps=2))
    assert status == 0, err
    unknown = ("threads: nothing there, 2 here", "deterministic: nothing there", "without_foreground: nothing there")
    assert all(text in err for text in unknown)


def test_resume_begins_anew_where_nothing_is_and_stops_where_all_is_done(bench, data, tmp_path):
    assert bench(*words(data, tmp_path / "run", "--resume"))[0] == 0
    before = (tmp_path / "run" / "checkpoints" / "step-6.pt").read_bytes()
    status, _, err = bench(*words(data, tmp_path / "run", "--resume"))
    assert status == 0
    assert "all done before" in err
    assert (tmp_path / "run" / "checkpoints" / "step-6.pt").read_bytes() == before


def test_a_folder_belongs_to_one_run(bench, data, tmp_path):
    assert bench(*words(data, tmp_path / "run"))[0] == 0
    status, _, err = bench(*words(data, tmp_path / "run"))
    assert status == 2
    assert err.splitlines()[-1].startswith(f"bench: {tmp_path / 'run'} holds a run of maskcontrast already")
    changed = ("--set", "lr=0.5", "--seed", 9, "--set", "augment.hue=0.2")
    status, _, err = bench(*words(data, tmp_path / "run", "--resume", *changed))
    assert status == 2
    said = ("settings.lr: 0.003 there, 0.5 here", "seed: 0 there, 9 here", "settings.augment.hue: 0.5 there, 0.2 here")
    assert all(change in err.splitlines()[-1] for change in said)
    (tmp_path / "run" / "record.json").unlink()
    status, _, err = bench(*words(data, tmp_path / "run"))
    assert status == 2
    assert "checkpoints of a run without record.json" in err


def test_what_only_watches_a_run_may_change(bench, data, tmp_path):
    bench(*words(data, tmp_path / "run"))
    status, _, err = bench(*words(data, tmp_path / "run", "--resume", "--set", "run.keep=5", "--workers", 0))
    assert status == 0, err


def test_runs_without_a_name_do_not_meet(bench, data, tmp_path):
    plain = [word for word in words(data, tmp_path) if word not in ("--output", tmp_path)]
    root = tmp_path / "results"
    for number in ("", "-2"):
        status, out, _ = bench(*plain)
        assert (status, out.strip()) == (0, str(root / f"maskcontrast-tiny-small{number}"))
    status, out, err = bench(*plain, "--resume")
    assert (status, out.strip()) == (0, str(root / "maskcontrast-tiny-small-2"))
    assert "all done before" in err


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--preset", "smal"], "Did you mean 'small'"),
        (["--set", "bacth=4"], "no setting 'bacth'. Did you mean"),
        (["--set", "masks.shufle=true"], "masks has no setting 'shufle'. Did you mean 'shuffle'"),
        (["--set", "masks=clean"], "masks is a group of settings: masks.name"),
        (["--set", "queue=9"], "queue of 9 does not hold a whole number of batches"),
        (["--set", "init=random", "--init", "random"], "say the same thing"),
        (["--masks", "dirty"], "no mask set 'dirty'"),
        (["--init", "mocov2"], "Did you mean 'moco_v2'"),
        (["--init", "timm:resnet18@random"], "arch="),
        (["--precision", "fp8"], "expected fp32 or bf16"),
        (["--wandb"], "pip install wandb"),
        (["--set", "lr=1e30"], "the loss of step"),
        (["--device", "tpu"], "--device tpu does not fit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(bench, data, tmp_path, monkeypatch, more, why):
    monkeypatch.setitem(sys.modules, "wandb", None)
    base = words(data, tmp_path / "run")
    if more[0] == "--device":
        base[base.index("--device") : base.index("--device") + 2] = []
    status, _, err = bench(*base, *more)
    assert status == 2
    assert why in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_small_train_set_is_one_batch(bench, data, tmp_path):
    (data / "ImageSets/Segmentation/train.txt").write_text("train0\ntrain1\ntrain2\n")
    status, _, err = bench(*words(data, tmp_path / "run"))
    assert status == 0
    assert "3 pictures are fewer than a batch of 4" in err
    assert json.loads((tmp_path / "run" / "record.json").read_text())["course"]["queue"] == 6


def mask_path(data: Path, name: str) -> Path:
    return data / "saliency_clean" / f"{name}.png"


def test_pictures_without_a_mask_are_said_first_and_kept_in_the_record(bench, data, tmp_path):
    for name in ("train1", "val3"):
        mask_path(data, name).unlink()
    Image.new("L", (48, 64), 255).save(mask_path(data, "nobody"))
    status, _, err = bench(*words(data, tmp_path / "run", steps=2))
    assert status == 0, err
    assert f"2 of 9 pictures have no mask in the set clean of {data}, the first is 'train1': left out" in err
    assert "1 masks of the set clean have no picture" in err
    assert err.index("left out") < err.index("run folder") < err.index("step 2 of 2")
    kept = checkpoint(tmp_path / "run", 2)["record"]["data"]
    assert (kept["pictures"], kept["without_mask"], kept["without_mask_first"]) == (7, 2, ["train1", "val3"])
    assert kept["masks_without_picture"] == 1


def lose_one(data: Path) -> None:
    mask_path(data, "train1").unlink()


def lose_all(data: Path) -> None:
    for path in (data / "saliency_clean").iterdir():
        path.unlink()
    Image.new("L", (48, 64), 255).save(mask_path(data, "nobody"))


def empty_all(data: Path) -> None:
    for path in (data / "saliency_clean").iterdir():
        Image.new("L", Image.open(path).size).save(path)


def shrink_one(data: Path) -> None:
    Image.new("L", (5, 5), 255).save(mask_path(data, "train1"))


@pytest.mark.parametrize(
    ("damage", "more", "why"),
    [
        (lose_one, ["--set", "masks.missing=error"], "1 of 9 pictures have no mask"),
        (lose_all, [], "9 of 9 pictures have no mask"),
        (empty_all, [], "all 9 masks of the set clean"),
        (shrink_one, ["--set", "masks.size=error"], "1 masks have another size than their picture"),
    ],
)
def test_masks_that_cannot_be_learnt_from(bench, data, tmp_path, damage, more, why):
    damage(data)
    status, _, err = bench(*words(data, tmp_path / "run"), *more)
    assert status == 2
    assert why in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_broken_picture_is_named_though_a_worker_met_it(bench, data, tmp_path):
    broken = data / "JPEGImages" / "train1.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    status, _, err = bench(*words(data, tmp_path / "run", "--workers", 1))
    assert status == 2
    assert str(broken) in err.splitlines()[-1]


def test_figures_go_to_wandb_when_asked(bench, data, tmp_path, monkeypatch):
    class Run:
        logged = {}  # noqa: RUF012

        def log(self, values, step):
            self.logged.setdefault(step, {}).update(values)

        def finish(self):
            self.logged["finished"] = True

    class Fake:
        Image = staticmethod(lambda pixels: pixels.shape)
        init = staticmethod(lambda **options: Run())

    monkeypatch.setitem(sys.modules, "wandb", Fake)
    assert bench(*words(data, tmp_path / "run", "--wandb"))[0] == 0
    assert {"loss", "lr"} <= Run.logged[2].keys()
    assert Run.logged[4]["panel"] == (128, 128, 3)
    assert Run.logged["finished"]


DEBUG = """
import sys, torch, json
from bench import cli, distributed
from bench.producers import _maskcontrast as producer
kept = {}
original = producer._Learner.step
def step(self, batch):
    kept["model"], kept["batch"] = self._model, len(batch.query)
    return original(self, batch)
producer._Learner.step = step
build = producer._optimizer
def build_and_keep(*arguments):
    kept["optimizer"] = build(*arguments)
    return kept["optimizer"]
producer._optimizer = build_and_keep
folder = sys.argv.pop(1)
try:
    cli.main()
except SystemExit as ended:
    import os
    state = {"model": kept["model"].state_dict(), "optimizer": kept["optimizer"].state_dict(), "batch": kept["batch"]}
    torch.save(state, f"{folder}/rank-{os.environ['RANK']}.pt")
    raise
"""


def launched(count: int, *command: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, timeout=200, check=False,
                          cwd=Path(__file__).parents[1])  # fmt: skip


def test_two_processes_stay_equal(bench, data, tmp_path):
    script = tmp_path / "debug.py"
    script.write_text(DEBUG)
    done = launched(2, script, tmp_path, *words(data, tmp_path / "run", steps=4))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(str(tmp_path / "run")) == 1
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    trained = {key: value for key, value in first["model"].items() if "running" not in key}
    assert same_bits(trained, {key: second["model"][key] for key in trained})
    assert same_bits(first["optimizer"], second["optimizer"])
    assert first["batch"] == second["batch"] == 2
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["processes"] == 2
    assert same_bits(dict(checkpoint(tmp_path / "run", 4)["model"]), dict(first["model"]))
    status, _, err = bench(*words(data, tmp_path / "run", "--resume", steps=4))
    assert status == 2
    assert "processes: 2 there, 1 here" in err


def test_more_processes_than_pictures_is_one_line(data, tmp_path):
    done = launched(2, "-m", "bench", *words(data, tmp_path / "run", "--set", "batch=1", "--set", "queue=2"))
    assert done.returncode != 0
    assert "bench: a batch of 1 is smaller than the 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_reference_reads_what_is_exported(bench, data, tmp_path):
    """Keys, order and shapes of the released file, in the format of old torch; the adapter gives the run's maps."""
    changes = ("arch=resnet50", "queue=128", "optimizer=sgd")
    chosen = [word for change in changes for word in ("--set", change)]
    status, _, err = bench(*words(data, tmp_path / "run", *chosen, "--export", "reference", steps=1))
    assert status == 0, err
    exported = tmp_path / "run" / "reference.pth.tar"
    assert not zipfile.is_zipfile(exported)
    held = torch.load(exported, weights_only=True)
    keys = [f"{name} {tuple(tensor.shape)}" for name, tensor in held["model"].items()]
    assert keys == KEYS.read_text().splitlines()
    assert (held["epoch"], set(held)) == (0, {"model", "optimizer", "epoch"})
    pictures = torch.rand(1, 3, 64, 64)
    seen = []
    for path in (exported, checkpoint_path(tmp_path / "run", 1)):
        request = AdapterRequest(
            card=CARD, checkpoint=weights.resolve(CARD, str(path), weights_dir=tmp_path), options=CARD.options()
        )
        seen.append(registry.load(CARD.factory)(request).eval()(pictures, ["embedding", "saliency"]))
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_what_cannot_be_exported_is_said_before_any_work(bench, data, tmp_path):
    status, _, err = bench(*words(data, tmp_path / "run", "--export", "reference"))
    assert (status, "--export reference is for arch=resnet50" in err) == (2, True)
    status, _, err = bench(*words(data, tmp_path / "run", "--export", "onnx"))
    assert (status, "expected reference" in err) == (2, True)
    assert not (tmp_path / "run").exists()
