"""The adapter of MaskContrast: the reference's maps, released files, run folders, and the random embedding."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from bench.adapters import _maskcontrast, maskcontrast
from bench.backbone import Backbone
from bench.errors import CheckpointError, DownloadError, SettingError
from bench.networks.maskcontrast import LinearMaskContrast, MaskContrastNetwork
from bench.records import AdapterRequest, MethodCard
from bench.testing import check_adapter
from bench.weights import resolve, state_sha256

GOLDEN = Path(__file__).parents[1] / "golden"
CARD: MethodCard = maskcontrast.CARD


def build(spec: str | None, folder: Path, **options: Any) -> Backbone:
    checkpoint = resolve(CARD, spec, weights_dir=folder)
    adapter = maskcontrast.build(AdapterRequest(card=CARD, checkpoint=checkpoint, options=CARD.options(**options)))
    assert isinstance(adapter, Backbone)
    return adapter.eval()


def test_the_reference_maps_come_through_the_adapter(tmp_path, monkeypatch, golden_weights):
    golden = np.load(GOLDEN / "maskcontrast_forward.npz")
    drawn = golden_weights(MaskContrastNetwork("resnet18"))
    state = {f"module.model_q.{key}": value for key, value in drawn.items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "r18.pth")
    monkeypatch.setattr(
        _maskcontrast, "MaskContrastNetwork", lambda arch, dim: MaskContrastNetwork(arch, dim=dim).double()
    )
    adapter = build(str(tmp_path / "r18.pth"), tmp_path)
    images = torch.from_numpy(golden["images"])
    with torch.no_grad():
        maps = adapter(images, ["layer4", "embedding", "saliency"])
    upsampled = {
        name: functional.interpolate(maps[name], images.shape[2:], mode="bilinear", align_corners=False)[:, :, ::8, ::8]
        for name in ("embedding", "saliency")
    }
    for seen, wanted in (
        (upsampled["embedding"], golden["embedding"]),
        (upsampled["saliency"][:, 0], golden["saliency_logits"]),
        (maps["layer4"][:, ::16], golden["backbone"]),
    ):
        assert np.abs(seen.numpy() - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A file with the keys and shapes of the released one, in its order, of small random numbers."""
    state = {}
    generator = torch.Generator().manual_seed(0)
    for line in (GOLDEN / "maskcontrast_resnet50_keys.txt").read_text().splitlines():
        name, _, shape = line.partition(" ")
        size = tuple(int(side) for side in shape.strip("(),").split(",") if side.strip())
        state[name] = torch.randn(size, generator=generator).abs() / 100
        if name.endswith(("num_batches_tracked", "queue_ptr")):
            state[name] = state[name].long()
    folder = tmp_path_factory.mktemp("released")
    torch.save({"model": state, "epoch": 39, "optimizer": {}}, folder / "maskcontrast_supervised_saliency.pth.tar")
    return folder


def test_a_released_file_is_loaded_key_for_key(released):
    adapter = build(None, released)
    held = torch.load(released / "maskcontrast_supervised_saliency.pth.tar", weights_only=True)["model"]
    state = adapter.body.state_dict()
    assert len(state) == adapter.account["taken"] == 363
    assert all(torch.equal(value, held[f"module.model_q.{name}"]) for name, value in state.items())
    assert adapter.account["missing"] == adapter.account["dropped"] == []
    assert sorted(adapter.account["outside"]) == sorted(name for name in held if not name.startswith("module.model_q."))


def test_the_supervised_file_is_not_taken_for_the_other(released):
    other = CARD.checkpoints[1]
    (released / other.filename).write_bytes((released / CARD.checkpoints[0].filename).read_bytes())
    with pytest.raises(CheckpointError, match=r"laid out otherwise.*module\.queue"):
        build(other.name, released)


def test_a_file_that_is_not_there_says_where_to_get_it(tmp_path):
    with pytest.raises(DownloadError, match=r"drive\.google\.com/file/d/1UkzAZ.* and put it at .*pth\.tar"):
        resolve(CARD, None, weights_dir=tmp_path, fetch=False)


@pytest.mark.parametrize("arch", ["small", "resnet18"])
def test_random_weights_are_a_function_of_the_seed_and_keep_the_contract(arch, tmp_path):
    one, same = build("random", tmp_path, arch=arch), build("random", tmp_path, arch=arch)
    assert state_sha256(one) == state_sha256(same)
    check_adapter(one)
    deepest = "layer3" if arch == "small" else "layer4"
    assert tuple(one.taps)[-4:] == (deepest, "decoder", "embedding", "saliency")
    assert (one.default_tap, one.taps["embedding"].channels) == ("embedding", 32)
    assert one.taps["saliency"].kind == "foreground_logit"


def test_the_released_architecture_is_the_default(tmp_path):
    adapter = build("random", tmp_path)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 39_641_952
    assert tuple(adapter.taps) == CARD.taps
    assert adapter.taps["decoder"].channels == 256


def run_folder(root: Path, *steps: int) -> Path:
    (root / "checkpoints").mkdir(parents=True)
    (root / "record.json").write_text("{}")
    for step in steps:
        torch.manual_seed(step)
        network = MaskContrastNetwork("small")
        state = {"queue": torch.zeros(32, 64), "queue_ptr": torch.zeros(1)}
        for copy in ("model_q", "model_k"):
            state |= {f"{copy}.{name}": value for name, value in network.state_dict().items()}
            network = MaskContrastNetwork("small")
        held = {"format": 1, "step": step, "architecture": network.describe(), "model": state, "record": {}}
        torch.save(held, root / "checkpoints" / f"step-{step}.pt")
    return root


def test_the_last_checkpoint_of_a_run_folder_names_its_architecture(tmp_path):
    folder = run_folder(tmp_path / "shapes-clean", 90, 240)
    adapter = build(str(folder), tmp_path)
    torch.manual_seed(240)
    wanted = MaskContrastNetwork("small").state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in adapter.body.state_dict().items())
    assert (adapter.account["entry"], adapter.account["prefix"]) == ("model", "model_q.")
    assert resolve(CARD, str(folder), weights_dir=tmp_path).name == "shapes-clean"
    with pytest.raises(CheckpointError, match=r"holds the architecture small, not resnet50.*drop --set maskcontrast"):
        build(str(folder), tmp_path, arch="resnet50")


@pytest.mark.parametrize(("arch", "dim"), [("small", 32), ("resnet18", 8), ("resnet34", 32), ("resnet50", 16)])
def test_a_file_that_names_no_architecture_tells_it_by_its_keys(tmp_path, arch, dim):
    wanted = MaskContrastNetwork(arch, dim=dim)
    state = {f"module.model_q.{name}": value for name, value in wanted.state_dict().items()}
    torch.save({"model": state, "optimizer": {"state": {0: {}}}}, tmp_path / "x.pth")
    adapter = build(str(tmp_path / "x.pth"), tmp_path)
    assert state_sha256(adapter.body) == state_sha256(wanted)
    assert adapter.taps["embedding"].channels == dim
    other = "resnet18" if arch == "resnet50" else "resnet50"
    with pytest.raises(CheckpointError) as error:
        build(str(tmp_path / "x.pth"), tmp_path, arch=other)
    assert f"holds the architecture {arch}, not {other}: drop --set maskcontrast.arch={other}" in str(error.value)


def test_a_body_that_there_is_no_architecture_of_is_not_taken_for_a_part_of_it(tmp_path):
    """A ResNet-101 holds all keys of a ResNet-50."""
    state = MaskContrastNetwork("resnet50").state_dict()
    deeper = {f"backbone.layer3.6.{key}": torch.zeros(1) for key in ("conv1.weight", "bn1.weight")}
    torch.save({**state, **deeper}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"2 unexpected: .*backbone\.layer3 goes on to 6, here it ends at 5"):
        build(str(tmp_path / "x.pth"), tmp_path)


def test_linear_finetuned_files_of_another_body(tmp_path):
    wanted = LinearMaskContrast(4, "resnet18")
    torch.save(wanted.state_dict(), tmp_path / "x.pth")
    adapter = build(str(tmp_path / "x.pth"), tmp_path)
    assert state_sha256(adapter.body) == state_sha256(wanted)
    assert adapter.taps["classes"].channels == 4
    with pytest.raises(CheckpointError, match=r"architecture resnet18, not resnet50: drop --set maskcontrast\.arch"):
        build(str(tmp_path / "x.pth"), tmp_path, arch="resnet50")
    with pytest.raises(SettingError, match=r"no embedding: drop --set maskcontrast\.embedding=random"):
        build(str(tmp_path / "x.pth"), tmp_path, embedding="random")


def test_folders_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint yet: .*--resume"):
        build(str(run_folder(tmp_path / "begun")), tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match=r"no run of `bench train`"):
        build(str(tmp_path / "other"), tmp_path)


def test_a_random_embedding_keeps_the_saliency_and_is_a_function_of_the_picture(tmp_path):
    trained, random = (build("random", tmp_path, arch="small", embedding=e) for e in ("trained", "random"))
    pictures = torch.randint(0, 256, (3, 3, 40, 48), dtype=torch.uint8)
    with torch.no_grad():
        one, other = (a(a.preprocess(pictures), ["embedding", "saliency"]) for a in (trained, random))
        alone = random(random.preprocess(pictures[2:]), ["embedding"])["embedding"]
    assert torch.equal(one["saliency"], other["saliency"])
    assert torch.equal(alone[0], other["embedding"][2])
    assert one["embedding"].shape == other["embedding"].shape
    assert abs(float(other["embedding"].std()) - 1) < 0.05
    assert state_sha256(trained) == state_sha256(random)
    assert trained.fingerprint != random.fingerprint
    nearly = random.preprocess(pictures) * (1 + 1e-6)
    assert torch.equal(random(nearly, ["embedding"])["embedding"], other["embedding"])


def test_only_what_is_asked_for_is_computed(tmp_path, monkeypatch):
    adapter = build("random", tmp_path, arch="small")
    monkeypatch.setattr(adapter.body.decoder, "forward", lambda x: pytest.fail("the decoder ran"))
    with torch.no_grad():
        adapter(torch.zeros(1, 3, 16, 16), ["layer3"])


def test_the_card_says_where_everything_is_from():
    for one in CARD.checkpoints:
        assert re.fullmatch(r"https://drive\.google\.com/file/d/[\w-]{33}/view", one.url)
        assert "not opened" in one.verified
    assert _maskcontrast.MaskContrastBackbone.__doc__


@pytest.fixture(scope="module")
def linear_file(tmp_path_factory) -> Path:
    """A bare state with the keys of the released one, its heads replaced by a classifier of 21 classes."""
    generator, state = torch.Generator().manual_seed(1), {}
    for line in (GOLDEN / "maskcontrast_resnet50_keys.txt").read_text().splitlines():
        name, _, shape = line.partition(" ")
        name = name.removeprefix("module.model_q.")
        if not name.startswith("module.") and not name.startswith(("head.", "classification_head.")):
            state[name] = drawn(shape, generator)
    state["decoder.4.weight"] = drawn("(21, 256, 1, 1)", generator)
    state["decoder.4.bias"] = drawn("(21,)", generator)
    path = tmp_path_factory.mktemp("linear") / "VOCSegmentation_linear.pth.tar"
    torch.save(state, path)
    return path


def drawn(shape: str, generator: torch.Generator) -> torch.Tensor:
    sides = tuple(int(side) for side in shape.strip("()").split(",") if side.strip())
    return torch.randn(sides, generator=generator).abs() * 0.02 if sides else torch.tensor(1)


def test_linear_finetuned_files_bring_their_classifier(linear_file, tmp_path):
    adapter = build(str(linear_file), tmp_path)
    state = adapter.body.state_dict()
    assert len(state) == 362
    assert sum(p.numel() for p in adapter.body.parameters()) == 39_638_869
    assert adapter.taps["classes"].kind == "class_logit"
    assert torch.equal(state["decoder.4.bias"], torch.load(linear_file, weights_only=True)["decoder.4.bias"])
    with torch.no_grad():
        inputs = adapter.preprocess(torch.randint(0, 256, (1, 3, 64, 48), dtype=torch.uint8))
        maps = adapter(inputs, ("decoder", "classes", "layer4"))
    by_hand = functional.conv2d(maps["decoder"], state["decoder.4.weight"], state["decoder.4.bias"])
    torch.testing.assert_close(maps["classes"], by_hand)
    assert maps["layer4"].shape[1] == 2048


def test_their_classifier_is_scored_without_training(linear_file, bench, tmp_path):
    folder = tmp_path / "tiny"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / "JPEGImages" / f"{split}.png")
        Image.fromarray(rng.integers(0, 21, (40, 48)).astype(np.uint8)).save(
            folder / "SegmentationClass" / f"{split}.png"
        )
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{split}\n")
    (folder / "classes.txt").write_text("\n".join(["background", *(f"class {c}" for c in range(1, 21))]) + "\n")
    words = ("eval", "--method", f"maskcontrast@{linear_file}", "--protocol", "linear", "--dataset", folder, "--json")
    status, out, err = bench(*words)
    assert status == 0, err
    (row,) = json.loads(out)
    assert row["notes"] == ["the checkpoint's own classifier; nothing was trained"]
    (folder / "classes.txt").write_text("background\n" + "\n".join(f"class {c}" for c in range(1, 25)) + "\n")
    status, _, err = bench(*words)
    assert status == 2
    assert "knows 21 classes, the data set has 25: train one with --set linear.head=train" in err
