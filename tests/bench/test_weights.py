from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.checkpoints import read_checkpoint
from bench.errors import CheckpointError, DownloadError, InputError, UnknownNameError
from bench.records import Checkpoint, CheckpointCard, KeyRule, MethodCard
from bench.weights import detect, file_sha256, load_into, resolve, seeded, select, state_sha256


def network(width: int = 4) -> nn.Sequential:
    """conv and norm: 7 entries in its state."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, width, 3), norm=nn.BatchNorm2d(width)))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def under(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def user_file(path: Path, **facts) -> Checkpoint:
    return Checkpoint(name=path.name, kind="file", path=path, **facts)


# --- reading ---------------------------------------------------------------------------------------------------------


class Payload:
    """Creates a file when it is unpickled by a reader that trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize("legacy_pickle", [True, False])
def test_plain_data_beside_tensors(tmp_path, in_zip, legacy_pickle):
    path = tmp_path / "net.pth.tar"
    saved = {
        "state_dict": network().state_dict(), "best": np.float64(0.5), "counts": np.arange(3), "epoch": 800,
        "arch": "resnet50", "opt": argparse.Namespace(lr=0.03),
    }  # fmt: skip
    torch.save(saved, path, _use_new_zipfile_serialization=in_zip)
    found = read_checkpoint(path, legacy_pickle=legacy_pickle)
    assert found["epoch"] == 800
    assert found["best"] == 0.5
    assert found["counts"].tolist() == [0, 1, 2]
    for key, value in saved["state_dict"].items():
        assert torch.equal(found["state_dict"][key], value)


def test_numpy_scalars_written_under_the_other_numpys_module_name(tmp_path):
    """numpy 1 and numpy 2 name the module of their scalar rebuilder differently; files of both must be readable."""
    path = tmp_path / "net.pth"
    torch.save({"w": torch.ones(2), "best": np.float64(0.25)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert (new in data) != (old in data)
    path.write_bytes(data.replace(new, old) if new in data else data.replace(old, new))
    assert read_checkpoint(path)["best"] == 0.25
    assert read_checkpoint(path, legacy_pickle=True)["best"] == 0.25


def test_no_safe_global_is_left_behind(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "a.pth")
    assert argparse.Namespace not in before
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize("legacy_pickle", [True, False])
def test_hostile_pickle_is_never_executed(tmp_path, in_zip, legacy_pickle):
    path, trap = tmp_path / "evil.pth", tmp_path / "trap"
    torch.save({"w": torch.ones(2), "x": Payload(trap)}, path, _use_new_zipfile_serialization=in_zip)
    if legacy_pickle:
        assert torch.equal(read_checkpoint(path, legacy_pickle=True)["w"], torch.ones(2))
    else:
        with pytest.raises(CheckpointError, match=r"a pickled (io|_io)\.open") as error:
            read_checkpoint(path)
        assert "torch.save(model.state_dict()" in one_line(error)
    assert not trap.exists()


def test_plain_pickles_are_no_checkpoints(tmp_path):
    path, trap = tmp_path / "evil.pkl", tmp_path / "trap"
    path.write_bytes(pickle.dumps({"x": Payload(trap)}))
    for legacy_pickle in (False, True):
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path, legacy_pickle=legacy_pickle)
        one_line(error)
    assert not trap.exists()


def test_whole_module_of_a_vanished_project(tmp_path, monkeypatch, caplog):
    """The original lemniscate file: Python 2's format, with a pickled module whose class is nowhere to be found."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").touch()
    (tmp_path / "lib" / "NCEAverage.py").write_text(
        "import torch\n"
        "class NCEAverage(torch.nn.Module):\n"
        "    dump_patches = True\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('memory', torch.rand(10, 128))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    memory = importlib.import_module("lib.NCEAverage").NCEAverage()
    path = tmp_path / "lemniscate_resnet50.pth"
    wanted = network()
    torch.save(
        {"epoch": 200, "state_dict": under("module.", wanted), "lemniscate": memory, "best_prec1": torch.tensor(46.8)},
        path,
        _use_new_zipfile_serialization=False,
    )
    monkeypatch.undo()
    for name in ("lib.NCEAverage", "lib"):
        sys.modules.pop(name)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    one_line(error)
    with caplog.at_level(logging.INFO):
        found = read_checkpoint(path, legacy_pickle=True)
    assert "lib.NCEAverage.NCEAverage" in caplog.text
    assert "lib" not in sys.modules
    assert sorted(tmp_path.iterdir()) == before
    copy = network()
    load_into(copy, user_file(path, legacy_pickle=True))
    assert state_sha256(copy) == state_sha256(wanted)
    assert found["epoch"] == 200


def _truncated(path: Path, in_zip: bool) -> None:
    torch.save({"w": torch.rand(5000)}, path, _use_new_zipfile_serialization=in_zip)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _tarred(path: Path) -> None:
    inner = path.with_name("inner.pth")
    torch.save({}, inner)
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "inner.pth")


def _zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/inner.pth", b"1")


BROKEN = {
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "html": (lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>quota</html>"), "is a web page"),
    "lfs": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08\x00rest"), "compressed archive"),
    "tar": (_tarred, "tar archive"),
    "zip": (_zipped, "zip archive"),
    "text": (lambda p: p.write_bytes(b"hello"), "no file of torch.save"),
    "cut zip": (lambda p: _truncated(p, True), "damaged or incomplete"),
    "cut legacy": (lambda p: _truncated(p, False), "damaged or incomplete"),
    "list": (lambda p: torch.save([torch.ones(1)], p), "holds a list"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
    "missing": (lambda p: None, "there is no file"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("legacy_pickle", [False, True])
def test_what_is_no_checkpoint_is_told_in_one_line(tmp_path, kind, legacy_pickle):
    path = tmp_path / "net.pth"
    make, message = BROKEN[kind]
    make(path)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(path, legacy_pickle=legacy_pickle)
    assert str(path) in one_line(error)


def entry_at(path: Path, name: str) -> tuple[int, int]:
    """Where the content of a zip's entry begins, and how long it is."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{path.stem}/{name}")
    head = path.read_bytes()[info.header_offset : info.header_offset + 30]
    name_length, extra_length = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    return info.header_offset + 30 + name_length + extra_length, info.file_size


@pytest.mark.parametrize("entry", ["data/0", "data/1", "data.pkl"])
@pytest.mark.parametrize("legacy_pickle", [False, True])
def test_one_flipped_bit_is_found(tmp_path, entry, legacy_pickle):
    """Of a tensor that is wanted, of one that is not, and of the pickle; a file read before is looked at again."""
    path = tmp_path / "net.pth"
    torch.save({"w": torch.ones(5000), "optimizer": {"m": torch.ones(70)}}, path)
    assert torch.equal(read_checkpoint(path, legacy_pickle=legacy_pickle)["w"], torch.ones(5000))
    begin, size = entry_at(path, entry)
    content = bytearray(path.read_bytes())
    content[begin + size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, legacy_pickle=legacy_pickle)
    assert f"{path} is damaged: its entry net/{entry} is not what was written" in one_line(error)


def test_files_written_without_checksums_are_read(tmp_path):
    path = tmp_path / "net.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(7)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert {info.CRC for info in archive.infolist()} == {0}
    assert torch.equal(read_checkpoint(path)["w"], torch.ones(7))


def test_checksums_are_compared_once_a_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    torch.save({"w": torch.ones(7)}, path)
    read_checkpoint(path)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("compared again"))
    read_checkpoint(path)


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "program.pt"
    torch.jit.trace(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)).save(str(path))
    for legacy_pickle in (False, True):
        with pytest.raises(CheckpointError, match="TorchScript"):
            read_checkpoint(path, legacy_pickle=legacy_pickle)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = tmp_path / "net.safetensors"
    wanted, seen = network(), network()
    safetensors.save_file(wanted.state_dict(), str(path))
    load_into(seen, user_file(path))
    assert state_sha256(seen) == state_sha256(wanted)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


# --- picking the keys ------------------------------------------------------------------------------------------------

MOCO = KeyRule(
    entry="state_dict", prefix="module.encoder_q.", drop=("fc.*",), probe=(("module.encoder_q.fc.weight", (-1, 4)),)
)


def moco_file() -> dict[str, object]:
    query, key = network(), network()
    head = {"module.encoder_q.fc.weight": torch.zeros(2, 4), "module.queue": torch.zeros(2, 8)}
    state = {**under("module.encoder_q.", query), **under("module.encoder_k.", key), **head}
    return {"epoch": 1, "state_dict": state, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(1)}}}}


def test_every_key_is_accounted_for():
    file = moco_file()
    del file["state_dict"]["module.encoder_q.norm.num_batches_tracked"]
    expected = shapes(network())
    state, account = select(file, [KeyRule(prefix="nothing."), MOCO], expected, source="f")
    assert account.rule == MOCO
    assert set(state) == set(account.taken) == set(expected) - {"norm.num_batches_tracked"}
    assert torch.equal(state["conv.weight"], file["state_dict"]["module.encoder_q.conv.weight"])
    assert account.dropped == ("fc.weight",)
    assert account.missing == ("norm.num_batches_tracked",)
    assert set(account.outside) == {*under("module.encoder_k.", network()), "module.queue"}
    assert account.as_dict()["taken"] == 6


def test_first_rule_that_fits_is_taken():
    bare = {"model": under("", network())}
    rules = [KeyRule(entry="model", prefix="trunk."), KeyRule(entry="model", probe=(("conv.weight", (9, 3, 3, 3)),))]
    _, account = select(bare, [*rules, KeyRule(entry="model")], shapes(network()), source="f")
    assert account.rule == KeyRule(entry="model")


def test_prefix_is_removed_at_the_start_only():
    module = nn.Sequential(OrderedDict(a=nn.Sequential(OrderedDict(module=nn.Conv2d(1, 1, 1)))))
    state, _ = select(under("module.", module), [KeyRule(prefix="module.")], shapes(module), source="f")
    assert set(state) == {"a.module.weight", "a.module.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv.weight"), r"1 missing: conv\.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "1 unexpected: extra"),
        (lambda state: state.update({"conv.bias": torch.ones(9)}), r"conv\.bias \(9,\) instead of \(4,\)"),
        (lambda state: state.update({"conv.bias": "text"}), r"conv\.bias str instead of \(4,\)"),
    ],
)
def test_what_does_not_fit_is_listed(change, message):
    state = under("", network())
    change(state)
    with pytest.raises(CheckpointError, match=message) as error:
        select(state, [KeyRule()], shapes(network()), source="file.pth")
    assert one_line(error).startswith("file.pth does not fit the network")


def test_another_layout_says_where_the_network_lies():
    with pytest.raises(CheckpointError) as error:
        select(moco_file(), [KeyRule(entry="model", prefix="module.encoder.")], shapes(network()), source="f")
    text = one_line(error)
    assert "module.encoder_q.conv.weight" in text
    assert "'module.encoder.'" in text
    assert "--set checkpoint.key=state_dict --set checkpoint.prefix=module.encoder_q." in text


@pytest.mark.parametrize(
    ("entry", "prefix"),
    [("", ""), ("", "module."), ("state_dict", "backbone."), ("teacher", "module.backbone."), ("a.b", "x.y.z.")],
)
def test_foreign_layouts_are_detected(entry, prefix):
    state: dict[str, object] = {**under(prefix, network()), f"{prefix}head.weight": torch.ones(2, 2)}
    for key in reversed([part for part in entry.split(".") if part]):
        state = {key: state, "epoch": 3}
    assert detect(state, shapes(network()), source="f") == KeyRule(entry=entry, prefix=prefix, drop=("*",))


def staged() -> nn.Module:
    """A list of two blocks, and a place that is left empty."""
    blocks = nn.Sequential(*(nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1), norm=nn.Identity())) for _ in range(2)))
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 3, 1), pre=nn.Identity(), blocks=blocks, head=nn.Identity()))


INSIDE = {
    "a block more": ("blocks.2.conv.weight", "blocks goes on to 2, here it ends at 1"),
    "a gate": ("blocks.1.gate.fc.weight", "1 unexpected: blocks.1.gate.fc.weight"),
    "a scale": ("blocks.0.gamma", "1 unexpected: blocks.0.gamma"),
    "a norm where there is none": ("blocks.0.norm.weight", "1 unexpected: blocks.0.norm.weight"),
    "a layer in an empty place": ("pre.weight", "1 unexpected: pre.weight"),
    "registers": ("register_tokens", "1 unexpected: register_tokens"),
}
BESIDE = (
    "fc.weight", "head.0.weight", "head.mlp.2.bias", "classifier.weight", "projector.0.weight", "decoder.blocks.2.w",
    "mask_token", "queue", "blocks.0.total_ops", "blocks.1.norm.num_batches_tracked",
)  # fmt: skip


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("case", INSIDE)
def test_what_belongs_inside_a_network_and_has_no_place_there_is_refused(tmp_path, case, by_hand):
    key, message = INSIDE[case]
    path, seen = tmp_path / "net.pth", staged()
    before = state_sha256(seen)
    torch.save({"model": {**under("net.", staged()), f"net.{key}": torch.ones(3, 1, 1)}}, path)
    rules = (KeyRule(entry="model", prefix="net.", drop=("*",)),) if by_hand else ()
    with pytest.raises(CheckpointError) as error:
        load_into(seen, user_file(path, rules=rules))
    assert message in one_line(error)
    assert state_sha256(seen) == before


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_lies_beside_a_network_is_dropped_and_said(tmp_path, by_hand):
    path, seen, wanted = tmp_path / "net.pth", staged(), staged()
    torch.save({"model": {**under("net.", wanted), **{f"net.{key}": torch.ones(3) for key in BESIDE}}}, path)
    rules = (KeyRule(entry="model", prefix="net.", drop=("*",)),) if by_hand else ()
    account = load_into(seen, user_file(path, rules=rules))
    assert state_sha256(seen) == state_sha256(wanted)
    assert account is not None
    assert set(account.dropped) == set(BESIDE)


def test_the_network_that_a_file_is_of_is_named(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({**under("", staged()), "blocks.2.conv.weight": torch.ones(1)}, path)
    for rules in ((), (KeyRule(),)):
        with pytest.raises(CheckpointError, match=r"timm's deeper: give them as --method timm:deeper@.*net\.pth"):
            load_into(
                staged(),
                user_file(path, rules=rules),
                likely=lambda state: "deeper" if "blocks.2.conv.weight" in state else "",
            )


def test_among_copies_the_one_that_is_evaluated_is_taken():
    assert detect(moco_file(), shapes(network()), source="f").prefix == "module.encoder_q."
    dino = {name: under("backbone.", network()) for name in ("student", "teacher")}
    assert detect(dino, shapes(network()), source="f").entry == "teacher"
    with pytest.raises(CheckpointError, match=r"holds the network 2 times.*checkpoint\.prefix"):
        detect({**under("left.", network()), **under("right.", network())}, shapes(network()), source="f")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (under("backbone.", network(5)), r"of another shape: conv\.weight \(5, 3, 3, 3\) instead of \(4, 3, 3, 3\)"),
        ({"conv.weight": torch.ones(4, 3, 3, 3)}, r"5 missing: conv\.bias"),
        ({"other": torch.ones(1)}, "its keys at the top level begin other; expected keys such as conv.weight"),
        ({"epoch": 3}, "holds no tensors"),
    ],
)
def test_detection_never_settles_for_a_part(file, message):
    with pytest.raises(CheckpointError, match=message) as error:
        detect(file, shapes(network()), source="f")
    one_line(error)


def swav_file() -> dict[str, object]:
    return {**under("module.", network()), "module.prototypes.weight": torch.zeros(3000, 128)}


def test_a_file_of_another_registered_method_is_named(tmp_path, caplog):
    """Whether its layout is not the one that was released, or the network is not in it; or said where it is read."""
    hint = "this looks like a swav file (as of swav@800ep), to be given as --method swav@f"
    other, wide = KeyRule(entry="model", probe=(("conv.weight", (4, 3, 3, 3)),)), shapes(network(5))
    for rules, expected in (([other], shapes(network())), ([other], wide)):
        with pytest.raises(CheckpointError) as error:
            select(swav_file(), rules, expected, source="f")
        assert hint in one_line(error)
    for file in (swav_file(), {"module.prototypes.weight": torch.zeros(3000, 128)}):
        with pytest.raises(CheckpointError) as error:
            detect(file, wide, source="f")
        assert hint in one_line(error)
    torch.save(swav_file(), tmp_path / "f")
    load_into(network(), user_file(tmp_path / "f"))
    assert "swav" not in caplog.text  # nothing was promised of the file
    load_into(network(), user_file(tmp_path / "f", rules=(other,)))
    assert f"read as another method's: {hint[:-1]}{tmp_path}" in caplog.text


def test_a_file_of_an_estimator_is_named():
    file = {"outconv.weight": torch.zeros(1, 6, 1, 1), "stage1.rebnconv1.conv_s1.weight": torch.zeros(16, 64, 3, 3)}
    with pytest.raises(CheckpointError) as error:
        detect(file, shapes(network()), source="f")
    assert "looks like a u2net file (as of u2net@u2netp), to be given as --estimator u2net@f" in one_line(error)


def test_a_layout_of_another_size_says_which():
    rule = KeyRule(entry="net", probe=(("conv.weight", (4, 3, 3, 3)), ("bn.weight", (4,))))
    with pytest.raises(CheckpointError) as error:
        select({"net": {"conv.weight": torch.zeros(2, 3, 3, 3)}}, [rule], shapes(network()), source="f")
    assert "expected entry 'net', no prefix and conv.weight (4, 3, 3, 3), not (2, 3, 3, 3) and bn.weight (4,);" in (
        one_line(error)
    )


@pytest.mark.parametrize("shape", [(1000, 128), (3000, 128, 1)])
def test_only_a_probe_tells_a_method(shape):
    file = {**under("module.", network()), "module.prototypes.weight": torch.zeros(shape)}
    with pytest.raises(CheckpointError) as error:
        detect(file, shapes(network(5)), source="f")
    assert "looks like" not in one_line(error)
    assert "of this architecture" in one_line(error)


# --- loading and identity --------------------------------------------------------------------------------------------


def test_user_file_that_no_rule_is_made_for_is_detected_and_said(tmp_path, caplog):
    wanted, seen = network(), network()
    path = tmp_path / "mine.pth"
    torch.save({"model": {**under("net.", wanted), "net.fc.weight": torch.ones(1)}}, path)
    with caplog.at_level(logging.INFO):
        account = load_into(seen, user_file(path, rules=(MOCO,)))
    assert state_sha256(seen) == state_sha256(wanted)
    assert account is not None
    assert account.dropped == ("fc.weight",)
    assert "prefix 'net.'" in caplog.text
    with pytest.raises(CheckpointError):
        load_into(seen, Checkpoint(name="r", kind="released", path=path, rules=(MOCO,)))


def test_nothing_is_loaded_when_something_is_wrong(tmp_path):
    path, seen = tmp_path / "cut.pth", network()
    before = state_sha256(seen)
    state = under("", network())
    del state["norm.running_var"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="running_var"):
        load_into(seen, user_file(path))
    assert state_sha256(seen) == before


def test_checkpoints_without_a_file_load_nothing():
    assert load_into(network(), Checkpoint(name="random", kind="random")) is None


def test_state_hash_tells_values_names_and_types_apart():
    module = nn.Linear(2, 2)
    same = nn.Linear(2, 2)
    same.load_state_dict(module.state_dict())
    assert state_sha256(module) == state_sha256(same)
    assert state_sha256(module) != state_sha256(nn.Sequential(module))
    assert state_sha256(same.to(torch.bfloat16)) != state_sha256(module)
    with torch.no_grad():
        module.bias[1] += 1
    assert state_sha256(module) != state_sha256(nn.Linear(2, 2))


def test_seeded_networks_repeat_and_leave_the_generator_alone():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    with seeded(1):
        first = network()
    assert torch.equal(torch.rand(3), wanted)
    with seeded(1):
        second = network()
    with seeded(2):
        third = network()
    assert state_sha256(first) == state_sha256(second) != state_sha256(third)


# --- which file is meant ---------------------------------------------------------------------------------------------


def card(**facts) -> MethodCard:
    released = CheckpointCard(name="800ep", filename="net.pth", url="https://example.invalid/net.pth", **facts)
    by_hand = CheckpointCard(
        name="200ep", filename="old.pth", manual="download old.pth from the folder X", layouts=(MOCO,)
    )
    return MethodCard(name="method", summary="", factory="", checkpoints=(released, by_hand))


def test_released_file_in_place_is_verified_and_hashed(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    rule = KeyRule(prefix="module.")
    for spec in (None, "800ep"):
        found = resolve(card(sha256=digest[:8], layouts=(rule,)), spec, weights_dir=tmp_path)
        assert (found.name, found.kind, found.sha256, found.rules) == ("800ep", "released", digest, (rule,))
    for wrong in ({"sha256": "0000"}, {"md5": "0000"}, {"bytes": 3}):
        with pytest.raises(CheckpointError, match="is not the released 800ep") as error:
            resolve(card(**wrong), None, weights_dir=tmp_path)
        assert "delete it" in one_line(error)


def test_file_that_has_to_be_fetched_by_hand_says_how(tmp_path):
    for spec, fetch, words in (
        ("200ep", True, "download old.pth from the folder X"),
        ("800ep", False, "download https://example.invalid/net.pth"),
    ):
        with pytest.raises(DownloadError) as error:
            resolve(card(), spec, weights_dir=tmp_path, fetch=fetch)
        assert words in one_line(error)
        assert f"put it at {tmp_path}" in str(error.value)


def test_missing_file_is_fetched_to_its_place(tmp_path, monkeypatch):
    calls = []

    def fetch(url: str, target: Path, **promised) -> Path:
        calls.append((url, target, promised))
        target.write_bytes(b"weights")
        return target

    monkeypatch.setattr("bench.download.fetch", fetch)
    found = resolve(card(md5="ab", bytes=7), None, weights_dir=tmp_path)
    assert found.path == tmp_path / "net.pth"
    promised = {"sha256": "", "md5": "ab", "size": 7, "what": "net.pth"}
    assert calls == [("https://example.invalid/net.pth", tmp_path / "net.pth", promised)]


def archived(**facts) -> MethodCard:
    url = "https://example.invalid/models.tar.gz"
    released = CheckpointCard(name="555", filename="net_555.pth", url=url, member="models/555/best.pytorch", **facts)
    return MethodCard(name="method", summary="", factory="", checkpoints=(released,))


def fake_archive(path: Path, content: bytes = b"weights") -> Path:
    (path.parent / "best.pytorch").write_bytes(content)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(path.parent / "best.pytorch", "models/555/best.pytorch")
    (path.parent / "best.pytorch").unlink()
    return path


def test_missing_file_is_taken_out_of_its_archive(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("bench.download.fetch", lambda url, target: calls.append(url) or fake_archive(target))
    digest = hashlib.sha256(b"weights").hexdigest()
    for _ in range(2):  # the second time from what is there
        found = resolve(archived(sha256=digest), None, weights_dir=tmp_path)
        assert (found.path, found.sha256) == (tmp_path / "net_555.pth", digest)
        assert found.path.read_bytes() == b"weights"
        found.path.unlink()
    assert calls == ["https://example.invalid/models.tar.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["method_models.tar.gz"]


def test_archive_by_hand(tmp_path):
    with pytest.raises(DownloadError) as error:
        resolve(archived(), None, weights_dir=tmp_path, fetch=False)
    assert f"download https://example.invalid/models.tar.gz and put it at {tmp_path}/method_models" in one_line(error)
    assert f"take models/555/best.pytorch out of it and put that at {tmp_path / 'net_555.pth'}" in str(error.value)
    fake_archive(tmp_path / "method_models.tar.gz")
    assert resolve(archived(), None, weights_dir=tmp_path, fetch=False).path == tmp_path / "net_555.pth"
    (tmp_path / "net_555.pth").unlink()
    with pytest.raises(CheckpointError, match="is not the released 555: expected 3 bytes, got 7"):
        resolve(archived(bytes=3), None, weights_dir=tmp_path)


def test_users_file_gets_the_layouts_of_all_releases(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"x")
    found = resolve(card(layouts=(KeyRule(), MOCO)), str(path), weights_dir=tmp_path)
    assert (found.kind, found.name, found.sha256) == ("file", "mine.pth", file_sha256(path))
    assert found.rules == (KeyRule(), MOCO)
    for spec, message in ((f"{tmp_path}/no.pth", "there is no file"), (f"{tmp_path}/", "is a folder")):
        with pytest.raises(CheckpointError, match=message):
            resolve(card(), spec, weights_dir=tmp_path)


@pytest.mark.parametrize("given", [{"entry": "outer"}, {"prefix": "a."}, {"entry": "outer", "prefix": "a."}])
def test_layout_by_hand(tmp_path, given):
    """A file in which detection would have to ask: two copies, one of them chosen by the user."""
    wanted, seen, path = network(), network(), tmp_path / "two.pth"
    prefix = given.get("prefix", "backbone.")
    entry = given.get("entry", "model")
    torch.save({entry: {**under(prefix, wanted), f"{prefix}head": torch.ones(1)}, "z": under("b.", network())}, path)
    with pytest.raises(CheckpointError, match="2 times"):
        load_into(seen, resolve(card(), str(path), weights_dir=tmp_path))
    account = load_into(seen, resolve(card(), str(path), weights_dir=tmp_path, **given))
    assert state_sha256(seen) == state_sha256(wanted)
    assert account is not None
    assert (account.rule.entry, account.rule.prefix) == (entry, prefix)


def test_names(tmp_path):
    assert resolve(card(), "random", weights_dir=tmp_path, seed=4).identity == {"name": "random", "seed": 4}
    with pytest.raises(UnknownNameError, match="Did you mean '800ep'") as error:
        resolve(card(), "80ep", weights_dir=tmp_path)
    assert "random, or a file" in one_line(error)
    family = MethodCard(name="family", summary="", factory="", argument="NAME")
    assert resolve(family, None, weights_dir=tmp_path, argument="x").kind == "pretrained"
    bare = MethodCard(name="bare", summary="", factory="")
    with pytest.raises(CheckpointError, match="no released weights; give bare@random"):
        resolve(bare, None, weights_dir=tmp_path)
    floor = MethodCard(name="floor", summary="", factory="", trainable=False)
    assert resolve(floor, "anything", weights_dir=tmp_path).kind == "none"
