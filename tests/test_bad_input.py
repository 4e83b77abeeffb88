"""What people get wrong, typed as they type it: one line that names it and the fix, status 2, and no row."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from bench import paths, registry
from bench.features import SplitMaps
from bench.networks.resnet import DilatedResNet
from bench.work import build

Result = tuple[int, str, str]
COLOUR = ("--method", "colour", "--protocol", "kmeans", "--seeds", 1)


def files_of_results() -> list[str]:
    """Whatever lies in the results folder, hidden and temporary files too."""
    return sorted(str(path.relative_to(paths.results_root())) for path in paths.results_root().rglob("*"))


def the_line(result: Result) -> str:
    """The one line of a refusal, the last on stderr; log lines may stand before it."""
    status, out, err = result
    assert status == 2, err
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("bench: ")]
    assert lines == err.splitlines()[-1:], err
    return lines[0]


def assert_refused(result: Result, *needles: str) -> None:
    """One line that holds all needles, and nothing in the results folder."""
    line = the_line(result)
    for needle in needles:
        assert needle in line
    assert files_of_results() == []


def rows_of(result: Result) -> list[dict]:
    status, out, err = result
    assert status == 0, err
    return json.loads(out)


# --- names, settings and numbers -------------------------------------------------------------------------------------

WORDS = {
    "unknown method": ("--method noize --protocol kmeans", "'noize'", "Did you mean 'noise'"),
    "unknown protocol": ("--method noise --protocol kmean", "'kmean'", "Did you mean 'kmeans'"),
    "unknown preset": ("--method noise --protocol kmeans:papr", "no preset 'papr'", "Did you mean 'paper'"),
    "unknown --preset": ("--method noise --protocol kmeans --preset nativ", "no preset 'nativ'", "'native'"),
    "unknown setting": ("--method noise --protocol kmeans --set kmeans.whitn=no", "no setting 'whitn'", "'whiten'"),
    "unknown setting of a method": ("--method noise --protocol kmeans --set noise.widht=3", "'widht'", "'width'"),
    "setting of one protocol only": (
        "--method noise --protocol kmeans --protocol overclustering --set clusterz=3",
        "none of kmeans, overclustering has a setting 'clusterz'", "Did you mean 'clusters'"),
    "unknown owner": ("--method noise --protocol kmeans --set kmean.pca=3", "'kmean'", "Did you mean 'kmeans'"),
    "unknown checkpoint setting": (
        "--method swav@random --protocol kmeans --set checkpoint.prefixx=a", "'prefixx'", "Did you mean 'prefix'"),
    "value of a setting": (
        "--method noise --protocol kmeans --set kmeans.pca=many", "kmeans.pca=many", "a whole number"),
    "range of a setting": ("--method noise --protocol kmeans --set kmeans.pca=-1", "kmeans.pca=-1", "at least 0"),
    "a memory below nothing": (
        "--method noise --protocol hummingbird --set hummingbird.memory=-1", "memory=-1", "at least 0"),
    "no neighbours": (
        "--method noise --protocol hummingbird --set hummingbird.neighbours=0", "neighbours=0", "at least 1"),
    "no temperature": (
        "--method noise --protocol hummingbird --set hummingbird.temperature=0", "temperature=0", "at least 1e-06"),
    "a word that a setting does not know": (
        "--method noise --protocol hummingbird --set hummingbird.sampling=fair", "sampling=fair", "balanced, uniform"),
    "setting without value": ("--method noise --protocol kmeans --set pca", "'pca'", "key=value"),
    "unknown checkpoint": (
        "--method swav@800 --protocol kmeans", "no checkpoint '800'", "Did you mean '800ep'", "random"),
    "checkpoint of no file": ("--method swav@away/x.pth --protocol kmeans", "no file away/x.pth", "800ep"),
    "checkpoint given twice": (
        "--method swav@random --protocol kmeans --checkpoint x.pth", "--checkpoint x.pth", "swav@random has its own"),
    "one checkpoint, two methods": (
        "--method swav --method moco_v2 --protocol kmeans --checkpoint x.pth",
        "shared by 2 methods", "--method swav@x.pth"),
    "family without a name": ("--method timm --protocol kmeans", "'timm' needs a name", "--method timm:"),
    "name for no family": ("--method noise:loud --protocol kmeans", "takes nothing after a colon", "noise:loud"),
    "unknown split": ("--method noise --protocol kmeans --split tset", "no split 'tset'", "train, val", "tset.txt"),
    "clusters of kmeans": ("--method noise --protocol kmeans --clusters 3", "--clusters", "--set kmeans.clusters=K"),
    "clusters that are no numbers": (
        "--method noise --protocol overclustering --clusters few", "'few'", "whole numbers above 0"),
    "no clusters": ("--method noise --protocol overclustering --clusters 0", "'0'", "whole numbers above 0"),
    "no seeds": ("--method noise --protocol kmeans --seeds 0", "'--seeds'", "greater than or equal to 1", "--help"),
    "no pictures": ("--method noise --protocol kmeans --limit 0", "'--limit'", "greater than or equal to 1"),
    "size": ("--method noise --protocol kmeans --size large", "size 'large'", "native, N or HxW"),
    "size too small": ("--method noise --protocol kmeans --size 0x64", "size '0x64'", "8 to 8192"),
    "size as a setting": ("--method noise --protocol kmeans --set kmeans.size=12by12", "size '12by12'", "HxW"),
    "precision": ("--method noise --protocol kmeans --precision fp8", "--precision fp8", "fp32 or bf16"),
    "device": ("--method noise --protocol kmeans --device tpu", "--device tpu", "cuda:N"),
    "setting of another protocol": (
        "--method noise --protocol kmeans --protocol linear --set lr=0.1", "kmeans has no 'lr'", "--set linear.lr=0.1"),
    "mistyped setting of the probe": (
        "--method noise --protocol linear --set linear.epoch=3", "no setting 'epoch'", "Did you mean 'epochs'"),
    "value of the probe": (
        "--method noise --protocol linear --set linear.normalize=l1", "normalize=l1", "none, l2, standardize, bn"),
    "rate below 0": ("--method noise --protocol linear --set linear.lr=0.1,-1", "linear.lr=0.1,-1", "above 0"),
    "rate of 0": ("--method noise --protocol linear --set linear.lr=0", "linear.lr=0 does not fit", "above 0"),
    "rate of 0 among others": ("--method noise --protocol linear --set linear.lr=0,0.1", "linear.lr=0,0.1", "above 0"),
    "rate that is no number": ("--method noise --protocol linear --set linear.lr=nan", "lr=nan", "a finite number"),
    "rate of 0 in fine-tuning": (
        "--method supervised@random --protocol finetune --set finetune.lr=0", "finetune.lr=0 does not fit", "above 0"),
    "initial weights of no kind": (
        "--method noise --protocol linear --set linear.init_std=zeros", "init_std=zeros", "uniform", "a number"),
    "drop of the rate": ("--method noise --protocol linear --set linear.drop=4", "linear.drop=4", "E/N"),
    "classifier that is not there": (
        "--method noise --protocol linear --set linear.head=adapter", "noise brings no classifier", "head=train"),
    "a key that no protocol has": (
        "--method noise --protocol kmeans --protocol linear --set lrr=0.1",
        "none of kmeans, linear has a setting 'lrr'. Did you mean 'lr'?", "weight_decay"),
    "head of no row": ("--method noise --protocol linear --set linear.head=row:abc", "no row 'abc'", "bench eval"),
    "a bare 1 for a fraction": (
        "--method supervised@random --protocol finetune --set finetune.fractions=1", "may mean 1% or all", "1% or 1.0"),
    "a fraction above all": (
        "--method supervised@random --protocol finetune --set finetune.fractions=101%", "101%", "at most 100%"),
    "no fraction": ("--method supervised@random --protocol finetune --set finetune.fractions=0%", "0%", "above 0"),
    "mistyped setting of fine-tuning": (
        "--method supervised@random --protocol finetune --set finetune.iteration=3", "Did you mean 'iterations'"),
    "a list that is not there": (
        "--method supervised@random --protocol finetune --set finetune.names=gone.txt", "gone.txt", "check the path"),
    "fine-tuning of nothing": ("--method colour --protocol finetune", "colour has no weights", "another method"),
    "two maps for fine-tuning": (
        "--method supervised@random --protocol finetune --set finetune.tap=layer3,layer4", "finetune reads one map"),
    "a map that fine-tuning does not read": (
        "--method maskcontrast@random --protocol finetune --set finetune.tap=embedding",
        "finetune.tap=embedding is not read", "decoder=deeplab or none"),
    "rates of a stored network": (
        "--method supervised@random --protocol finetune --set finetune.network=row:abc --set finetune.lr=1",
        "trains nothing and does not read lr", "drop it"),
    "no method": ("--protocol kmeans", "--method", "--help"),
    "no protocol": ("--method noise", "--protocol", "--help"),
    "unknown option": ("--method noise --protocol kmeans --seedz 3", "--seedz", "--seed", "--help"),
    "unknown map": ("--method noise --protocol kmeans --set kmeans.tap=nois", "no map 'nois'", "Did you mean 'noise'"),
    "no such file": ("--method gone.py:build --protocol kmeans", "no file gone.py", "path/to/file.py:factory"),
    "file without factory": ("--method gone.py --protocol kmeans", "gone.py:FUNCTION"),
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
def test_words(bench, voc, case):
    words, *needles = WORDS[case]
    assert_refused(bench("eval", "--dataset", voc, *words.split()), *needles)


COMMANDS = {
    "eval of a data set": ("eval --method noise --protocol kmeans --dataset shape", "'shape'", "Did you mean 'shapes'"),
    "eval of a folder": (
        "eval --method noise --protocol kmeans --dataset ./gone",
        "gone does not exist",
        "JPEGImages/",
    ),
    "list": ("list method", "list method", "Did you mean 'methods'"),
    "table": ("table", "no rows", "bench eval", "--results"),
    "data prepare": ("data prepare vocc", "'vocc'", "Did you mean 'voc'"),
    "data prepare of nothing near": ("data prepare nothing", "'nothing'", "Known: shapes, voc"),
    "data use": ("data use nothing", "'nothing'", "Known: shapes, voc"),
    "data use of a folder": ("data use ./gone", "gone does not exist"),
    "fetch": ("fetch swaw", "no method or estimator called 'swaw'", "Did you mean 'swav'"),
    "fetch of an estimator": ("fetch basnt", "no method or estimator called 'basnt'", "Did you mean 'basnet'"),
    "fetch of an estimator's checkpoint": ("fetch u2net@u2nett", "no checkpoint 'u2nett'", "'u2netp'"),
    "fetch of what was not released": ("fetch deepusps", "deepusps has no released weights", "deepusps@FILE"),
    "fetch of a checkpoint": ("fetch moco_v2@900ep", "no checkpoint '900ep'", "'800ep'"),
    "unknown command": ("evaluate", "'evaluate'", "bench --help"),
    "not prepared": ("eval --method noise --protocol kmeans --dataset voc", "bench data prepare voc", "--root DIR"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(bench, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    words, *needles = COMMANDS[case]
    assert_refused(bench(*words.split()), *needles)


def test_a_name_of_a_method_and_of_an_estimator(bench, monkeypatch):
    names = registry.names
    monkeypatch.setattr(registry, "names", lambda kind: (*names(kind), "swav"))
    assert not set(names("methods")) & set(names("estimators"))
    line = the_line(bench("fetch", "swav@800ep"))
    assert "'swav' is a method and an estimator: `bench eval --method swav@800ep` and `bench masks" in line


def test_doctor_names_what_is_wrong(bench):
    status, out, _ = bench("doctor", "--dataset", "shape", "--method", "noize", "--device", "tpu")
    assert status == 2
    failures = [line for line in out.splitlines() if line.startswith("FAIL ")]
    assert len(failures) == 3
    for fix, line in zip(("--device tpu", "'shapes'", "'noise'"), failures, strict=True):
        assert fix in line


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_no_gpu(bench, voc, monkeypatch, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = bench("eval", *COLOUR, "--dataset", voc, "--device", device)
    assert_refused(result, f"--device {device}", "use --device cpu")


def test_a_gpu_that_is_not_there(bench, voc, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert_refused(bench("eval", *COLOUR, "--dataset", voc, "--device", "cuda:2"), "--device cuda:2", "there are 2")


def test_a_command_without_arguments_shows_its_help(bench):
    status, out, err = bench()
    assert status == 2
    assert "quickstart" in out + err
    assert "Traceback" not in err


# --- data ------------------------------------------------------------------------------------------------------------


def picture(voc: Path, name: str = "val1") -> Path:
    return voc / "JPEGImages" / f"{name}.jpg"


def mask(voc: Path, name: str = "val1") -> Path:
    return voc / "SegmentationClass" / f"{name}.png"


def split_list(voc: Path, split: str = "val") -> Path:
    return voc / "ImageSets/Segmentation" / f"{split}.txt"


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def change_mask(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


DAMAGE = {
    "empty split": (lambda voc: split_list(voc).write_text("\n\n"), "val.txt is empty", "a picture a line"),
    "repeated name": (lambda voc: split_list(voc).write_text("val1\nval1\n"), "'val1' more than once"),
    "picture absent": (lambda voc: picture(voc).unlink(), "val.txt lists 'val1'", "JPEGImages", "take it off the list"),
    "names with suffix": (lambda voc: split_list(voc).write_text("val1.jpg\n"), "'val1.jpg'", "without the suffix"),
    "mask absent": (lambda voc: mask(voc).unlink(), "val.txt lists 'val1'", "no label map val1.png", "add it"),
    "mask of another size": (
        lambda voc: change_mask(mask(voc), lambda label: label[:-1]),
        "val1.png is 48x63", "is 48x64", "nearest neighbour"),
    "label too high": (
        lambda voc: change_mask(mask(voc), lambda label: np.where(label == 2, 3, label).astype(np.uint8)),
        "val1.png holds the value 3", "3 classes (0 to 2, 255 = void)", "classes.txt"),
    "picture truncated": (lambda voc: cut(picture(voc)), "val1.jpg cannot be read", "truncated or", "restore it"),
    "header truncated": (lambda voc: cut(picture(voc), 0.01), "val1.jpg cannot be read", "restore it"),
    "picture empty": (lambda voc: picture(voc).write_bytes(b""), "val1.jpg cannot be read", "restore it"),
    "mask truncated": (lambda voc: cut(mask(voc)), "val1.png cannot be read", "restore it"),
    "mask of colours": (
        lambda voc: Image.open(mask(voc)).convert("RGB").save(mask(voc)),
        "val1.png holds colours", "palette or grey PNG"),
    "no masks": (lambda voc: shutil.rmtree(voc / "SegmentationClass"), "no label maps", "SegmentationClass/"),
    "no pictures": (lambda voc: shutil.rmtree(voc / "JPEGImages"), "holds no data set", "JPEGImages/"),
    "list in another encoding": (
        lambda voc: split_list(voc).write_bytes("gr\xfcn\n".encode("latin-1")), "val.txt cannot be read", "UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_data(bench, voc, case):
    damage, *needles = DAMAGE[case]
    damage(voc)
    assert_refused(bench("eval", *COLOUR, "--dataset", voc), *needles)


def test_a_missing_split_list(bench, voc):
    split_list(voc).unlink()
    words = ("eval", *COLOUR, "--dataset", voc)
    result = bench(*words, "--split", "val")
    assert_refused(result, "no split 'val'", "there are: train", "val.txt with one picture name a line")
    status, _, err = bench(*words)
    assert status == 0
    assert "its split train is scored; choose another with --split" in err


def test_a_missing_train_list_is_not_replaced_by_the_scored_one(bench, voc):
    split_list(voc, "train").unlink()
    words = ("eval", *COLOUR, "--dataset", voc)
    assert_refused(bench(*words, "--set", "kmeans.fit=train"), "no split 'train'", "there are: val", "train.txt")
    remembers = ("eval", "--method", "noise", "--protocol", "hummingbird", "--dataset", voc)
    assert_refused(bench(*remembers), "no split 'train'", "there are: val", "train.txt")
    assert bench(*words)[0] == 0


def test_the_split_that_is_remembered_is_not_the_scored_one(bench, voc):
    words = ("eval", "--method", "noise", "--protocol", "hummingbird", "--dataset", voc, "--split", "train")
    assert_refused(bench(*words), "hummingbird learns from the split train", "choose another with --split")


def all_void(path: Path) -> None:
    change_mask(path, lambda label: np.full_like(label, 255))


def test_an_all_void_mask_is_allowed_and_counted(bench, voc):
    all_void(mask(voc))
    [row] = rows_of(bench("eval", *COLOUR, "--dataset", voc, "--json"))
    assert row["per_seed"][0]["void_pictures"] == 1
    assert row["run"]["dataset"]["pictures"] == 6
    assert row["dropped"] == 0


def test_masks_that_are_void_alone(bench, voc):
    for name in split_list(voc).read_text().split():
        all_void(mask(voc, name))
    assert_refused(bench("eval", *COLOUR, "--dataset", voc), "'val'", "nothing but void", "nothing can be scored")


def test_pictures_are_read_as_people_see_them(bench, unusual):
    """A picture stored in an unusual way scores exactly as the plain RGB picture that a viewer shows."""
    [stored], [usual] = (rows_of(bench("eval", *COLOUR, "--dataset", folder, "--json")) for folder in unusual)
    assert stored["run"]["dataset"]["fingerprint"] != usual["run"]["dataset"]["fingerprint"]
    assert stored["per_seed"] == usual["per_seed"]


@pytest.mark.parametrize("unusual", ["grey", "transparent", "cmyk"], indirect=True)
@pytest.mark.parametrize(
    "method",
    ["colorization --set tap=model2", "iic --set iic.width=4", "cooccurrence --set cooccurrence.width=4"],
    ids=lambda words: words.split()[0],
)
def test_networks_read_pictures_as_people_see_them(bench, unusual, method):
    """Of grey pictures three channels, of four channels three; colorization reads lightness alone."""
    name, *options = method.split()
    words = ("eval", "--method", f"{name}@random", *options, "--protocol", "kmeans", "--seeds", 1, "--limit", 3)
    [stored], [usual] = (rows_of(bench(*words, "--dataset", folder, "--json")) for folder in unusual)
    assert stored["per_seed"] == usual["per_seed"]


def test_a_label_that_was_not_turned_with_its_picture(bench, voc):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise before it is shown
    Image.fromarray(np.rot90(np.array(Image.open(picture(voc))))).save(picture(voc), exif=exif)
    change_mask(mask(voc), np.rot90)
    assert_refused(bench("eval", *COLOUR, "--dataset", voc), "val1.png is 64x48", "is 48x64")


# --- methods from files ----------------------------------------------------------------------------------------------

PLAIN = "import torch\nfrom bench.backbone import Backbone\n\n"
CONV = "Backbone(torch.nn.Conv2d(3, 6, 4, stride=4), stride=4, channels=6)"

USER_FILES = {
    "no factory": (PLAIN + f"def bulid():\n    return {CONV}\n", "no function 'build'", "Did you mean 'bulid'"),
    "does not import": ("import no_such_module\n", "line 1 raised ModuleNotFoundError", "correct the file"),
    "does not parse": ("def build(:\n", "raised SyntaxError", "correct the file"),
    "factory raises": (
        "def build():\n    raise RuntimeError('no weights\\nat all')\n",
        "line 2 raised RuntimeError: no weights at all"),
    "factory wants arguments": ("def build(size):\n    return size\n", "raised TypeError", "'size'"),
    "plain module": (
        PLAIN + "def build():\n    return torch.nn.Conv2d(3, 6, 4)\n", "returned a Conv2d without taps", "Backbone("),
    "no stride": (PLAIN + "def build():\n    return Backbone(torch.nn.Conv2d(3, 6, 4))\n", "give stride", "channels"),
    "wrong channels": (
        PLAIN + f"def build():\n    return {CONV.replace('channels=6', 'channels=7')}\n", "map 'last'", "(4, 7, h, w)"),
    "wrong stride": (
        PLAIN + f"def build():\n    return {CONV.replace(' stride=4, c', ' stride=8, c')}\n",
        "the map 'last' of val", "correct stride"),
    "kind that cannot be scored": (
        PLAIN + "from bench.records import Tap\n\n"
        "def build():\n    return Backbone(torch.nn.Conv2d(3, 1, 4, stride=4), "
        "taps=[Tap(name='object', channels=1, stride=4, kind='foreground_logit')])\n",
        "kmeans scores maps of kind cluster_prob or feature", "'object'", "is a foreground_logit",
        "--set kmeans.tap=NAME"),
    "NaN": (
        PLAIN + "class Odd(torch.nn.Conv2d):\n    calls = 0\n    def forward(self, x):\n        self.calls += 1\n"
        "        maps = super().forward(x).clone()\n"
        "        if self.calls == 3:\n            maps[0, 2, 5, 1] = float('nan')\n        return maps\n\n"
        "def build():\n    return Backbone(Odd(3, 6, 4, stride=4), stride=4, channels=6)\n",
        "of picture 'val2' holds NaN", "check the checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", USER_FILES)
def test_user_files(bench, voc, tmp_path, case):
    text, *needles = USER_FILES[case]
    file = tmp_path / "mine.py"
    file.write_text(text)
    batch = 1 if case == "NaN" else 4
    words = ("--method", f"{file}:build", "--protocol", "kmeans", "--seeds", 1, "--batch-size", batch, "--size", 64)
    assert_refused(bench("eval", *words, "--dataset", voc), *needles)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def resnet(layers: tuple[int, ...] = (1, 1, 2, 2)) -> nn.Module:
    """torchvision's ResNet-50 with fewer blocks, an eighth as wide inside, without the classifier."""
    net = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(layers), width_per_group=8)
    net.fc = nn.Identity()
    return net


@pytest.fixture
def narrow(monkeypatch):
    """The ResNet-50 methods on a small body."""
    monkeypatch.setattr("bench.adapters._resnet.dilated_resnet", lambda arch, stride: DilatedResNet(resnet(), 32))


def swav_state(net: nn.Module, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """SwAV's layout: DataParallel's prefix, a projection head and 3,000 prototypes."""
    heads = {"projection_head.0.weight": torch.zeros(8, 8), "prototypes.weight": torch.zeros(3000, 128)}
    return {prefix + key: value for key, value in {**net.state_dict(), **heads}.items()}


class Payload:
    """Creates a file when it is unpickled by a reader that trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def truncated(path: Path) -> None:
    torch.save(swav_state(resnet()), path)
    cut(path)


def hostile(path: Path) -> None:
    torch.save({**swav_state(resnet()), "x": Payload(path.with_name("trap"))}, path)


CHECKPOINTS = {
    "missing": (lambda path: None, "no file", "weights.pth"),
    "empty": (lambda path: path.touch(), "weights.pth is empty", "download it again"),
    "truncated": (truncated, "weights.pth is damaged or incomplete", "download it again"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><html>Sign in</html>"), "is a web page", "direct link"),
    "wrong architecture": (
        lambda path: torch.save(swav_state(resnet((1, 1, 2, 1))), path),
        "does not fit the network", "missing: layer4.1.", "of this architecture"),
    "another network": (
        lambda path: torch.save(nn.Linear(3, 4).state_dict(), path),
        "at the top level begin weight, bias", "of this architecture"),
    "hostile": (hostile, "refused because reading it could run code", "torch.save(model.state_dict(), path)"),
    "a picture": (lambda path: Image.new("RGB", (9, 9)).save(path, "PNG"), "no file of torch.save", "the weights file"),
    "a folder": (lambda path: path.mkdir(), "is a folder", "name the checkpoint file"),
}  # fmt: skip


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(bench, voc, tmp_path, case):
    make, *needles = CHECKPOINTS[case]
    path = tmp_path / "weights.pth"
    make(path)
    words = ("--method", f"swav@{path}", "--protocol", "kmeans", "--seeds", 1)
    assert_refused(bench("eval", *words, "--dataset", voc), *needles)
    assert not (tmp_path / "trap").exists()


@pytest.mark.usefixtures("narrow")
def test_a_hostile_pickle_for_a_method_with_a_legacy_file(bench, voc, tmp_path):
    """Instance discrimination released whole pickled modules: its files are read with stubs, and run nothing either."""
    hostile(tmp_path / "weights.pth")
    words = ("--method", f"instdisc@{tmp_path / 'weights.pth'}", "--protocol", "kmeans", "--set", "pca=0", "--seeds", 1)
    status, _, err = bench("eval", *words, "--dataset", voc)
    assert status == 0
    assert "replaced by inert stubs" in err
    assert not (tmp_path / "trap").exists()


@pytest.mark.usefixtures("narrow")
def test_a_prefix_under_which_nothing_lies(bench, voc, tmp_path):
    torch.save(swav_state(resnet(), "net.body."), tmp_path / "weights.pth")
    words = (
        "eval", "--method", f"swav@{tmp_path / 'weights.pth'}", "--protocol", "kmeans", "--seeds", 1, "--dataset", voc,
        "--set", "tap=layer1", "--set", "pca=0",
    )  # fmt: skip
    result = bench(*words, "--set", "checkpoint.prefix=module.")
    assert_refused(result, "net.body.conv1.weight", "--set checkpoint.prefix=net.body.")
    assert bench(*words, "--set", "checkpoint.prefix=net.body.")[0] == 0


@pytest.mark.usefixtures("narrow")
def test_a_file_of_another_method_under_a_released_name(bench, voc):
    """What was fetched by hand and put in the right place, but is MoCo's."""
    target = paths.weights_dir() / "swav_800ep_pretrain.pth.tar"
    target.parent.mkdir(parents=True)
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in resnet().state_dict().items()}}, target)
    assert_refused(
        bench("eval", "--method", "swav", "--protocol", "kmeans", "--dataset", voc),
        "laid out otherwise",
        "module.encoder_q.conv1.weight",
        "prefix 'module.'",
        "module.prototypes.weight",
    )


@pytest.mark.parametrize("command", ["eval --protocol kmeans --method", "fetch"])
def test_another_file_under_a_released_name(bench, voc, command):
    target = paths.weights_dir() / "resnet50-0676ba61.pth"
    target.parent.mkdir(parents=True)
    torch.save(resnet().state_dict(), target)
    bench("data", "use", voc)
    result = bench(*command.split(), "supervised")
    assert_refused(result, str(target), "is not the released imagenet1k-v1", "expected sha256 0676ba61", "delete it")
    assert target.exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("command", [("eval", "--method", "swav", "--protocol", "kmeans"), ("fetch", "swav")])
def test_weights_that_cannot_be_fetched(bench, voc, command):
    bench("data", "use", voc)
    assert_refused(
        bench(*command),
        "cannot reach dl.fbaipublicfiles.com",
        "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
        f"put it at {paths.weights_dir() / 'swav_800ep_pretrain.pth.tar'}",
    )
    assert not list(paths.weights_dir().glob("*"))


@pytest.mark.usefixtures("offline")
def test_weights_put_in_place_by_hand(bench, voc):
    """A file as SwAV publishes it, at full size, where the line above says: the command runs through as it stands."""
    target = paths.weights_dir() / "swav_800ep_pretrain.pth.tar"
    target.parent.mkdir(parents=True)
    net = torchvision.models.resnet50()
    net.fc = nn.Identity()
    torch.save(swav_state(net), target)
    bench("data", "use", voc)
    status, out, err = bench("eval", "--method", "swav", "--protocol", "kmeans")
    assert status == 0, err
    assert "swav" in out
    [row] = (json.loads(file.read_text()) for file in paths.results_root().glob("*.json"))
    assert row["provenance"]["weights_account"]["taken"] == 318
    assert row["run"]["checkpoint"]["name"] == "800ep"


@pytest.mark.usefixtures("narrow")
def test_a_wrong_checkpoint_is_said_before_the_methods_before_it_compute(bench, voc, tmp_path):
    truncated(tmp_path / "weights.pth")
    words = ("eval", *COLOUR, "--method", f"swav@{tmp_path / 'weights.pth'}", "--dataset", voc)
    assert "weights.pth is damaged" in the_line(bench(*words))
    assert files_of_results() == []


# --- clusters and vectors --------------------------------------------------------------------------------------------


def of_four_vectors(voc: Path, *more: object) -> tuple[object, ...]:
    """One picture of 59×51 pixels, 2×2 cells of 32 pixels."""
    words = ("eval", "--method", "colour", "--set", "colour.stride=32", "--seeds", 1, "--dataset", voc, "--limit", 1)
    return (*words, "--json", *more)


def test_more_clusters_than_vectors(bench, voc):
    asked = of_four_vectors(voc, "--protocol", "overclustering", "--clusters", "2,5")
    assert_refused(bench(*asked), "--clusters 5", "the 4 vectors", "at most that many")
    asked = of_four_vectors(voc, "--protocol", "kmeans", "--set", "kmeans.clusters=5")
    assert_refused(bench(*asked), "kmeans.clusters=5", "the 4 vectors", "at most that many")


def test_more_classes_than_vectors(bench, voc):
    (voc / "classes.txt").write_text("\n".join(f"class {k}" for k in range(6)))
    [row] = rows_of(bench(*of_four_vectors(voc, "--protocol", "kmeans")))
    assert row["run"]["settings"]["clusters"] == 4
    assert "K was cut from 6 classes to 4, the number of vectors" in row["notes"]


def test_the_default_list_is_cut(bench, voc):
    words = ("eval", "--method", "colour", "--protocol", "overclustering", "--seeds", 1, "--dataset", voc, "--json")
    result = bench(*words)
    rows = rows_of(result)  # 6 pictures of 8×6 or 8×7 cells
    assert [row["run"]["settings"]["clusters"] for row in rows] == [3, 50, 100]
    assert all("K = 200, 500 left out" in note for row in rows for note in row["notes"] if "default list" in note)
    assert any("default list" in note for row in rows for note in row["notes"])
    assert "K = 200, 500 left out of the default list" in result[2]


def test_a_default_list_of_which_nothing_is_left(bench, voc):
    assert_refused(bench(*of_four_vectors(voc, "--protocol", "overclustering")), "half of the 4 vectors", "--clusters")


def test_neither_faiss(bench, voc, monkeypatch):
    monkeypatch.setattr("bench.cluster.faiss_available", lambda: False)
    words = ("eval", *COLOUR, "--dataset", voc, "--json")
    assert_refused(bench(*words), "'densebench[cpu]'", "'densebench[gpu]'", "--set engine=sklearn")
    assert_refused(bench(*words, "--set", "engine=faiss"), "'densebench[cpu]'", "'densebench[gpu]'")
    for engine in ("sklearn", "torch"):
        [row] = rows_of(bench(*words, "--set", f"engine={engine}"))
        assert row["run"]["settings"]["engine"] == engine


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """Files with a given suffix in their name cannot be flushed to the disk."""
    flush = os.fsync

    def fill(part: str) -> None:
        def refuse(descriptor: int) -> None:
            if part in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(descriptor)

        monkeypatch.setattr("os.fsync", refuse)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell files apart by their descriptors")
    return fill


@pytest.mark.parametrize("part", [".probe", ".npz", ".json"])
def test_a_full_disk_leaves_no_half_row(bench, voc, full_disk, part):
    full_disk(part)
    result = bench("eval", *COLOUR, "--dataset", voc)
    assert_refused(result, "the disk or quota is full", "--results", "DENSEBENCH_RESULTS")


def test_a_disk_that_is_nearly_full(bench, voc, monkeypatch):
    usage = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(folder)._replace(free=1 << 20))
    assert_refused(bench("eval", *COLOUR, "--dataset", voc), "1 MB left", "--results")


def test_results_that_cannot_be_written(bench, voc, tmp_path):
    (tmp_path / "file").write_text("here lies a file")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        result = bench("eval", *COLOUR, "--dataset", voc, "--results", folder)
        assert_refused(result, str(folder), "cannot be written", "--results")


def test_a_table_that_cannot_be_written(bench, voc, tmp_path):
    (tmp_path / "file").touch()
    assert bench("eval", *COLOUR, "--dataset", voc)[0] == 0
    assert "cannot be written" in the_line(bench("table", "--output", tmp_path / "file" / "table.md"))
    assert "no format 'latx'" in the_line(bench("table", "--format", "latx"))


@pytest.mark.parametrize("step", ["append", "commit", "__init__"])
def test_a_full_disk_under_the_cache_is_no_reason_to_stop(bench, voc, monkeypatch, step):
    def refuse(self: object, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ("eval", *COLOUR, "--dataset", voc, "--json")
    with monkeypatch.context() as patched:
        patched.setattr(f"bench.cache.Writer.{step}", refuse)
        result = bench(*words)
    [row] = rows_of(result)
    assert "No space left on device" in result[2]
    assert "going on without it" in result[2]
    assert not list((paths.cache_root() / "entries").glob("*"))
    assert row["per_seed"] == rows_of(bench(*words, "--again"))[0]["per_seed"]


def test_a_cache_that_cannot_be_written(bench, voc, tmp_path):
    (tmp_path / "file").touch()
    result = bench("eval", *COLOUR, "--dataset", voc, "--cache", tmp_path / "file" / "cache", "--json")
    assert len(rows_of(result)) == 1
    assert "going on without it" in result[2]


def foreign_record(entry: Path) -> None:
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps({**meta, "record": {"stage": "another"}}))


def torn_record(entry: Path) -> None:
    cut(entry / "meta.json")


def torn_array(entry: Path) -> None:
    for file in entry.glob("*.bin"):
        file.write_bytes(file.read_bytes()[:-4])


def other_bytes(entry: Path) -> None:
    for file in entry.glob("*.bin"):
        file.write_bytes(bytes(len(file.read_bytes())))


def a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("not a folder")


@pytest.mark.parametrize("damage", [foreign_record, torn_record, torn_array, other_bytes, a_file])
def test_damaged_cache_entries(bench, voc, damage):
    words = ("eval", *COLOUR, "--dataset", voc, "--again", "--json")
    [before] = rows_of(bench(*words))
    entries = list((paths.cache_root() / "entries").iterdir())
    assert entries
    for entry in entries:
        damage(entry)
    result = bench(*words)
    [after] = rows_of(result)
    assert after["per_seed"] == before["per_seed"]
    assert "cannot be used and is made anew" in result[2]


# --- interruption ----------------------------------------------------------------------------------------------------


def interrupt(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "place", ["bench.cluster.kmeans", "bench.features.SplitMaps._forward", "bench.metrics.evaluate"]
)
def test_interrupted(bench, voc, monkeypatch, place):
    """Ctrl-C in the second method: the first one's row is kept, and the same command goes on from there."""
    assert bench("eval", *COLOUR, "--dataset", voc)[0] == 0
    finished = files_of_results()
    words = ("eval", *COLOUR, "--method", "noise", "--dataset", voc, "--json")
    with monkeypatch.context() as patched:
        patched.setattr(place, interrupt)
        status, out, err = bench(*words)
    assert (status, out) == (130, "")
    assert "finished rows are kept" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert files_of_results() == finished
    assert not list((paths.cache_root() / "entries").glob(".*")), "an entry in the making was left behind"

    built = []
    monkeypatch.setattr("bench.evaluate.build", lambda session, job: built.append(job.name) or build(session, job))
    assert [row["run"]["method"] for row in rows_of(bench(*words))] == ["colour", "noise"]
    assert built == ["noise"]
    assert set(finished) < set(files_of_results())


# --- learning from the train split -----------------------------------------------------------------------------------

PROBE = ("eval", "--method", "colour", "--protocol", "linear:cached", "--set", "linear.epochs=4")


def test_a_train_split_that_is_not_there(bench, voc):
    (voc / "ImageSets" / "Segmentation" / "train.txt").unlink()
    assert_refused(bench(*PROBE, "--dataset", voc), "no split 'train'", "there are: val", "train.txt")


def test_the_scored_split_is_not_learnt_from(bench, voc):
    result = bench(*PROBE, "--dataset", voc, "--split", "train")
    assert_refused(result, "linear learns from the split train, which is the one to be scored", "--split")


def test_a_learning_rate_that_diverges(bench, voc):
    line = the_line(bench(*PROBE, "--dataset", voc, "--set", "linear.lr=1e38"))
    assert re.search(
        r"the loss of step \d+ is (nan|inf) at a learning rate of 1e\+38: lower it \(--set linear\.lr=…\)", line
    )
    assert list(paths.results_root().glob("*.json")) == []


@pytest.mark.parametrize(
    "words",
    [
        "colour --protocol linear:cached",
        "colour --protocol linear:native",
        "colour --protocol hummingbird",
        "timm:resnet18@random --protocol finetune --set finetune.fractions=50%",
        "colour --protocol retrieval --set retrieval.foreground=masks:true",
    ],
)
def test_train_labels_that_are_void_alone(bench, voc, monkeypatch, words):
    (voc / "saliency_true").mkdir(exist_ok=True)
    for path in (voc / "SegmentationClass").glob("*.png"):
        Image.new("L", Image.open(path).size, 255).save(voc / "saliency_true" / path.name)
        if path.stem.startswith("train"):
            all_void(path)
    monkeypatch.setattr(SplitMaps, "_forward", lambda *_: pytest.fail("it is refused before any forward pass"))
    assert_refused(
        bench("eval", "--method", *words.split(), "--dataset", voc),
        "the label maps of the train split hold nothing but void (255): there is nothing to learn from",
    )


def test_maps_that_do_not_fit_are_not_learnt_from(bench, voc, monkeypatch):
    from bench.cache import Cache

    monkeypatch.setattr(Cache, "room_for", lambda self, nbytes: False)
    line = the_line(bench(*PROBE, "--dataset", voc))
    assert "must be kept to be learnt from" in line
    assert "--cache" in line


def test_a_broken_label_of_the_train_split(bench, voc):
    path = voc / "SegmentationClass" / "train1.png"
    path.write_bytes(path.read_bytes()[:60])
    assert str(path) in the_line(bench(*PROBE, "--dataset", voc))


SMALL_TUNING = ("eval", "--method", "timm:resnet18@random", "--protocol", "finetune", "--set", "finetune.crop=64",
                "--set", "finetune.fractions=100%", "--set", "finetune.iterations=3", "--seeds", 1)  # fmt: skip


def test_a_list_of_unknown_pictures(bench, voc, tmp_path):
    listed = tmp_path / "few.txt"
    listed.write_text("train1\nnobody\n")
    line = the_line(bench(*SMALL_TUNING[:5], "--dataset", voc, "--set", f"finetune.names={listed}"))
    assert "1 names are not, the first is 'nobody'" in line


def test_fine_tuning_that_diverges(bench, voc):
    line = the_line(bench(*SMALL_TUNING, "--dataset", voc, "--set", "finetune.lr=1e30"))
    assert re.search(
        r"the loss of step \d+ is (nan|inf) at a learning rate of .*: lower it \(--set finetune\.lr=…\)", line
    )


def test_fine_tuning_on_checkpoints_of_another_network(bench, voc, monkeypatch):
    from bench.work import MethodWork

    folder = paths.results_root() / "training" / "here"
    monkeypatch.setattr(MethodWork, "training_folder", lambda self, seed: folder)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("[]")
    line = the_line(bench(*SMALL_TUNING, "--dataset", voc))
    assert "record.json is no record of a training run: choose another folder with --results" in line


def test_fine_tuning_without_a_train_split(bench, voc):
    (voc / "ImageSets" / "Segmentation" / "train.txt").unlink()
    assert_refused(bench(*SMALL_TUNING, "--dataset", voc), "no split 'train'", "train.txt")
