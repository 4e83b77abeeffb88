"""Files of weights that belong to another network, for every network whose layout is known: one line that says which.

The files hold every key of the official ones in its shape, or with half the channels; `tests/test_bad_input.py` has
files that are damaged, hostile or no checkpoints at all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from bench import paths

WHOLE = {
    "swav": "--method swav", "cmp_alexnet": "--method cmp", "cmp_resnet50": "--method cmp", "iic": "--method iic",
    "iic_isola": "--method cooccurrence", "colorization": "--method colorization", "basnet": "--estimator basnet",
    "u2net": "--estimator u2net", "u2netp": "--estimator u2net",
}  # fmt: skip
"""The files, and to whom they belong."""


def halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    """With half the channels on either side; those of pictures, masks and edges stay."""
    return tuple(size // 2 if axis < 2 and size >= 8 else size for axis, size in enumerate(shape))


@pytest.fixture
def write(golden_keys):
    """Write a file in the official layout, of zeros that take no room."""

    def save(path: Path, name: str, *, half: bool = False) -> Path:
        keys = {"module.prototypes.weight": (3000, 128)} if name == "swav" else golden_keys(name)
        state = {key: torch.zeros(()).expand(halved(shape) if half else shape) for key, shape in keys.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"net": state} if name == "iic" else state, path)
        return path

    return save


def line_of(result: tuple[int, str, str]) -> str:
    """The one line of a refusal."""
    status, out, err = result
    assert (status, out) == (2, ""), err
    line = err.splitlines()[-1]
    assert line.startswith("bench: ")
    assert err.count("bench: ") == 1
    return line


def asked(owner: str, spec: str) -> list[str]:
    """The command that reads weights: of a method, or of an estimator."""
    words = f"{owner}@{spec}".split()
    return ["masks", *words] if owner.startswith("--estimator") else ["eval", "--protocol", "kmeans", *words]


OTHERS = {
    "colorization": "swav", "cmp": "colorization", "iic": "cmp_resnet50", "cooccurrence": "cmp_alexnet",
    "swav": "iic_isola", "maskcontrast": "u2net", "dino": "basnet",
}  # fmt: skip


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_is_given_the_file_of_another(bench, voc, write, tmp_path, method):
    file = write(tmp_path / "file.pth", OTHERS[method])
    line = line_of(bench(*asked(f"--method {method}", str(file)), "--dataset", voc))
    owner = WHOLE[OTHERS[method]]
    assert f"this looks like a {owner.split()[1]} file (as of " in line
    assert f"to be given as {owner}@{file}" in line


def test_a_trunk_that_two_methods_share_is_read_and_said(bench, voc, write, tmp_path):
    file = write(tmp_path / "file.pth", "iic")
    status, _, err = bench(*asked("--method cooccurrence", str(file)), "--seeds", 1, "--dataset", voc)
    assert status == 0, err
    assert f"{file} is read as another method's: this looks like an iic file (as of iic@coco-stuff-15)" in err


@pytest.mark.parametrize(
    ("estimator", "name"), [("basnet", "u2netp"), ("u2net", "basnet"), ("deepusps", "u2net"), ("basnet", "swav")]
)
def test_an_estimator_is_given_the_file_of_another(bench, voc, write, tmp_path, estimator, name):
    file = write(tmp_path / "file.pth", name)
    line = line_of(bench("masks", "--estimator", estimator, "--checkpoint", file, "--dataset", voc))
    owner = WHOLE[name]
    assert f"this looks like a {owner.split()[1]} file (as of " in line
    assert f"to be given as {owner}@{file}" in line
    assert not list(voc.glob("saliency_*"))


def test_the_alexnet_for_the_resnet(bench, voc, write, tmp_path):
    file = write(tmp_path / "file.pth", "cmp_alexnet")
    words = asked("--method cmp", str(file))
    line = line_of(bench(*words, "--set", "cmp.arch=resnet50", "--dataset", voc))
    assert f"{file} holds CMP's alexnet, not resnet50: drop --set cmp.arch=resnet50" in line
    write(paths.weights_dir() / "cmp_resnet50.pth.tar", "cmp_alexnet")
    line = line_of(bench(*asked("--method cmp", "resnet50"), "--dataset", voc))
    assert "this looks like a cmp file (as of cmp@alexnet)" in line


DEEPER = [("supervised", "seresnet50", 10), ("moco_v2", "resnet101", 1000), ("timm:resnet50", "resnet101", 1000)]


@pytest.mark.parametrize(("method", "network", "classes"), DEEPER)
def test_a_network_of_which_the_one_named_is_a_part(bench, voc, tmp_path, method, network, classes):
    with torch.device("meta"):
        keys = timm.create_model(network, num_classes=classes).state_dict()
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in keys.items()}, tmp_path / "x.pth")
    line = line_of(bench(*asked(f"--method {method}", str(tmp_path / "x.pth")), "--dataset", voc))
    assert f"these are the weights of timm's {network}: give them as --method timm:{network}@{tmp_path}" in line


HALF = {
    "colorization": "model1.0.weight (32, 1, 3, 3) instead of (64, 1, 3, 3)",
    "cmp_resnet50": "conv1.weight (32, 3, 7, 7) instead of (64, 3, 7, 7)",
    "cmp_alexnet": "conv1.0.weight (48, 3, 11, 11) instead of (96, 3, 11, 11)",
    "iic": "trunk.features.0.weight (32, 5, 3, 3) instead of (64, 5, 3, 3)",
    "iic_isola": "features.0.weight (32, 5, 3, 3) instead of (64, 5, 3, 3)",
    "basnet": "inconv.weight (32, 3, 3, 3) instead of (64, 3, 3, 3)",
    "u2net": "stage1.rebnconvin.conv_s1.weight (32, 3, 3, 3) instead of (64, 3, 3, 3)",
    "u2netp": "stage1.rebnconvin.conv_s1.weight (32, 3, 3, 3) instead of (64, 3, 3, 3)",
}


@pytest.mark.parametrize("name", HALF)
def test_half_the_channels(bench, voc, write, tmp_path, name):
    file = write(tmp_path / "file.pth", name, half=True)
    line = line_of(bench(*asked(WHOLE[name], str(file)), "--dataset", voc))
    assert f"{file} does not fit the network" in line
    assert HALF[name] in line
    assert line.endswith("give a checkpoint of this architecture")


def test_half_the_channels_under_a_released_name(bench, voc, write):
    write(paths.weights_dir() / "iic_512.pytorch", "iic", half=True)
    line = line_of(bench(*asked("--method iic", "coco-stuff-15"), "--dataset", voc))
    assert "trunk.features.0.weight (64, 5, 3, 3), not (32, 5, 3, 3)" in line


TAPS = {
    "colorization": ("modell7", "model7"), "cmp": ("layr3", "layer3"), "iic": ("head_C", "head_B"),
    "cooccurrence": ("trnk", "trunk"),
}  # fmt: skip


@pytest.mark.parametrize("method", TAPS)
def test_an_unknown_tap(bench, voc, method):
    wrong, right = TAPS[method]
    words = asked(f"--method {method}", "random")
    line = line_of(bench(*words, "--set", f"kmeans.tap={wrong}", "--dataset", voc))
    assert f"no map '{wrong}'" in line
    assert f"'{right}'" in line
