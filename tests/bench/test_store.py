"""Rows are kept whole, found again, and never replaced."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import files, store
from bench.errors import InternalError, StorageError
from bench.store import Row, Store, provenance, run_key, summarise

RUN: dict[str, Any] = {
    "method": "swav",
    "method_version": 1,
    "options": {},
    "checkpoint": {"name": "random", "seed": 0},
    "tap": "layer4",
    "protocol": "kmeans",
    "preset": "native",
    "preset_version": 1,
    "settings": {"clusters": 3, "pca": 32, "tol": 1e-4},
    "dataset": {"name": "tiny", "split": "val", "fingerprint": "ab", "pictures": 4, "classes": ["a", "b", "c"]},
    "dtype": "float32",
    "precision": "fp32",
}


def scores(seed: int, miou: float) -> dict[str, Any]:
    by_rule = {"one_to_one_iou": {"miou": miou, "foreground_miou": None, "iou": [miou, 0.5], "match": [seed, 1]}}
    return {"seed": seed, "scores": by_rule, "held_out": None, "null": by_rule, "ari": 0.25, "pixels": 100}


@pytest.fixture
def make():
    def make(*mious: float, created: str = "2026-01-01T00:00:00+00:00", **run: Any) -> Row:
        return Row.of(
            RUN | run,
            [scores(seed, miou) for seed, miou in enumerate(mious)],
            headline={"rule": "one_to_one_iou", "metric": "miou"},
            notes=["a note"],
            provenance={"created": created},
            seconds={"maps": 1.5},
            peak_memory_bytes=1000,
        )

    return make


# ------------------------------------------------------------------------------------------------ keys and means


def test_the_key_ignores_order_and_nothing_else():
    key = run_key(RUN)
    assert len(key) == 16
    assert int(key, 16) >= 0
    assert run_key(dict(reversed(RUN.items()))) == key
    for name in RUN:
        assert run_key(RUN | {name: "other"}) != key
    assert run_key(RUN | {"settings": RUN["settings"] | {"clusters": 4}}) != key


def test_the_key_is_stable_over_versions():
    assert run_key({"method": "swav", "settings": {"clusters": 11}}) == "57bb5427e0e965e4"


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, Path("x")])
def test_a_run_is_plain_data(value):
    with pytest.raises(InternalError, match="plain data"):
        run_key({"value": value})


def test_means_and_deviations_agree_with_numpy():
    values = np.random.default_rng(0).random((5, 4))
    per_seed = [
        {"seed": s, "scores": {"r": {"miou": v[0], "iou": list(v[1:]), "match": [s]}}} for s, v in enumerate(values)
    ]
    mean, std = summarise(per_seed)
    for result, reference in ((mean, values.mean(0)), (std, values.std(0, ddof=1))):
        assert set(result) == {"scores"}
        assert set(result["scores"]["r"]) == {"miou", "iou"}
        figures = result["scores"]["r"]
        np.testing.assert_allclose([figures["miou"], *figures["iou"]], reference, rtol=1e-12)


def test_one_seed_has_no_deviation():
    mean, std = summarise([scores(0, 0.4)])
    assert mean["scores"]["one_to_one_iou"] == {"miou": 0.4, "foreground_miou": None, "iou": [0.4, 0.5]}
    assert std["scores"]["one_to_one_iou"] == {"miou": None, "foreground_miou": None, "iou": [None, None]}


def test_what_one_seed_lacks_is_undefined():
    one, other = {"a": 1.0, "b": [1.0, math.nan], "c": {"x": 1}}, {"a": None, "b": [3.0, 1.0], "d": 2, "e": "text"}
    mean, std = summarise([one, other])
    assert mean == {"a": None, "b": [2.0, None], "c": None, "d": None}
    assert std == {"a": None, "b": [math.sqrt(2), None], "c": None, "d": None}


def test_nothing_to_summarise_is_our_fault():
    with pytest.raises(InternalError):
        summarise([])


# ------------------------------------------------------------------------------------------------ one row


def test_a_row_survives_json(make):
    row = make(0.4, 0.6)
    data = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert data["schema"] == 1
    assert data["key"] == run_key(RUN)
    assert data["seeds"] == [0, 1]
    again = Row.from_json(data)
    assert again.to_json() == row.to_json()
    assert again.headline_mean == pytest.approx(0.5)
    assert again.headline_std == pytest.approx(math.sqrt(0.02))
    assert again.figure("held_out") is None
    assert again.figure("null") == pytest.approx(0.5)
    assert again.figure("scores", "many_to_one_iou") is None


def test_numpy_and_nan_become_json(make):
    row = make(0.4, tuple_=(1, 2))
    data = row.to_json()
    assert data["run"]["tuple_"] == [1, 2]
    assert data["key"] == run_key(data["run"]) == row.key
    undefined = {"undefined": math.nan, "iou": np.array([0.5, math.nan])}
    per_seed = [{"seed": 0, **undefined, "one": np.float64(0.5), "n": np.int64(3)}]
    data = Row.of(RUN, per_seed, headline={}).to_json()
    assert data["per_seed"] == [{"seed": 0, "undefined": None, "iou": [0.5, None], "one": 0.5, "n": 3}]
    assert data["mean"] == {"undefined": None, "iou": [0.5, None], "one": 0.5, "n": 3}


@pytest.mark.parametrize("value", [math.inf, object(), {1: 2}])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(InternalError, match=r"cannot hold|row holds"):
        Row.of(RUN, [scores(0, 0.4)], headline={}, provenance={"extra": value}).to_json()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 1"),
        ({"key": "0" * 16}, "edited or damaged"),
        ({"seeds": [7]}, "seeds"),
        ({"mean": [1]}, "form"),
        ({"run": RUN | {"tap": "layer3"}}, "edited or damaged"),
    ],
)
def test_a_changed_row_is_recognised(make, change, words):
    with pytest.raises(ValueError, match=words):
        Row.from_json(make(0.4).to_json() | change)


def test_a_row_with_a_part_missing_is_recognised(make):
    data = make(0.4).to_json()
    del data["per_seed"]
    with pytest.raises(ValueError, match="lacks per_seed"):
        Row.from_json(data)


# ------------------------------------------------------------------------------------------------ the folder


def test_an_empty_store_creates_nothing(tmp_path):
    empty = Store(tmp_path / "none")
    assert empty.find("0" * 16) is None
    assert empty.rows() == []
    assert not empty.folder.exists()


def test_a_saved_row_is_found_with_its_arrays(tmp_path, make):
    row, kept = make(0.4, 0.6), Store(tmp_path / "runs")
    arrays: dict[str, Any] = {
        "counts/0": np.arange(6).reshape(2, 3),
        "file": np.array([1.5], np.float32),
        "empty": np.zeros((0, 2)),
    }
    path = kept.save(row, arrays)
    assert path == kept.folder / f"{row.key}-s2.json"
    found = kept.find(row.key)
    assert found == Row.from_json(json.loads(path.read_text()))
    read = kept.arrays(found)
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    with pytest.raises(KeyError):
        read["other"]
    np.testing.assert_array_equal(kept.arrays(row)["file"], [1.5])  # a row that was never read from a file


def test_nothing_is_ever_replaced(tmp_path, make):
    kept = Store(tmp_path)
    paths = [kept.save(make(miou), {"n": np.array(miou)}) for miou in (0.1, 0.2, 0.3)]
    key = make(0.1).key
    assert [path.name for path in paths] == [f"{key}-s1.json", f"{key}-s1.r2.json", f"{key}-s1.r3.json"]
    latest = kept.find(key)
    assert latest is not None
    assert latest.headline_mean == 0.3
    assert kept.arrays(latest)["n"] == 0.3
    assert json.loads(paths[0].read_text())["mean"]["scores"]["one_to_one_iou"]["miou"] == 0.1


def test_revisions_and_seeds_are_ordered_as_numbers(tmp_path, make):
    kept = Store(tmp_path)
    for n in range(12):
        kept.save(make(n / 100), {})
    latest = kept.find(make(0.0).key)
    assert latest is not None
    assert latest.headline_mean == 0.11
    for n in (9, 10):
        kept.save(make(*[0.5] * n), {})
    most = kept.find(make(0.0).key)
    assert most is not None
    assert len(most.seeds) == 10


def test_most_seeds_win_and_order_is_that_of_first_saving(tmp_path, make):
    kept = Store(tmp_path)
    kept.save(make(0.5, tap="layer3", created="2026-01-02T00:00:00+00:00"), {})
    kept.save(make(0.4, 0.4, created="2026-01-03T00:00:00+00:00"), {})
    kept.save(make(0.3, created="2026-01-01T00:00:00+01:00"), {})  # fewer seeds, but the first of its run
    assert [(row.run["tap"], len(row.seeds)) for row in kept.rows()] == [("layer4", 2), ("layer3", 1)]


def test_without_a_time_of_its_own_a_row_has_that_of_its_file(tmp_path, make):
    path = Store(tmp_path).save(make(0.4, created=""), {})
    row = Store(tmp_path).rows()[0]
    assert row.created == datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "[" * 100_000, '{"schema": 99}', "\udcff"])
def test_damaged_and_foreign_files_are_named_and_skipped(tmp_path, make, caplog, content):
    kept = Store(tmp_path)
    kept.save(make(0.4), {})
    bad = tmp_path / f"{make(0.4).key}-s5.json"
    bad.write_text(content, errors="surrogateescape")
    with caplog.at_level(logging.WARNING):
        rows = kept.rows()
    assert [row.headline_mean for row in rows] == [0.4]
    assert [record.getMessage().count(str(bad)) for record in caplog.records] == [1]
    found = kept.find(make(0.4).key)
    assert found is not None
    assert len(found.seeds) == 1


@pytest.mark.parametrize("name", ["package.json", "{key}-s2.json", "0123456789abcdef-s1.json"])
def test_a_row_under_a_foreign_name_is_skipped(tmp_path, make, caplog, name):
    kept = Store(tmp_path)
    kept.save(make(0.4), {}).rename(tmp_path / name.format(key=make(0.4).key))
    assert kept.rows() == []
    assert len(caplog.records) == 1


def test_arrays_that_are_gone_or_damaged(tmp_path, make):
    kept = Store(tmp_path)
    path = kept.save(make(0.4), {"a": np.arange(1000)}).with_suffix(".npz")
    row = kept.rows()[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StorageError, match="--again"):
        kept.arrays(row)
    path.unlink()
    with pytest.raises(StorageError, match=path.name):
        kept.arrays(row)
    with pytest.raises(StorageError, match="no row"):
        kept.arrays(make(0.4, 0.5))


def test_objects_are_not_saved(tmp_path, make):
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        Store(tmp_path).save(make(0.4), {"a": np.array([object()])})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_a_save_that_fails_leaves_nothing(tmp_path, make, monkeypatch, suffix):
    def full(path: Path, data: files.Data, **rest: Any) -> None:
        if path.suffix == suffix:
            raise StorageError("full")
        files.write_new(path, data, **rest)

    monkeypatch.setattr(store, "write_new", full)
    with pytest.raises(StorageError):
        Store(tmp_path).save(make(0.4), {"a": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_arrays_without_a_row_do_not_stand_in_the_way(tmp_path, make):
    orphan = tmp_path / f"{make(0.4).key}-s1.npz"
    orphan.write_bytes(b"left by a crash")
    path = Store(tmp_path).save(make(0.4), {"a": np.zeros(1)})
    assert path.name.endswith("-s1.r2.json")
    assert orphan.read_bytes() == b"left by a crash"


def test_check_writable(tmp_path):
    Store(tmp_path / "a" / "b").check_writable()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    with pytest.raises(StorageError, match=r"MB left.*--results or DENSEBENCH_RESULTS"):
        Store(tmp_path).check_writable(need=1 << 60)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file.*--results or DENSEBENCH_RESULTS"):
        Store(tmp_path / "file" / "runs").check_writable()


# ------------------------------------------------------------------------------------------------ provenance


def test_provenance_says_with_what():
    facts = provenance("cpu", "fp32")
    assert facts["device"] == "cpu"
    assert facts["precision"] == "fp32"
    assert facts["libraries"]["numpy"] == np.__version__
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(facts["created"])).total_seconds()) < 60
    assert set(facts) >= {"densebench", "python", "platform", "libraries"}
    json.dumps(facts)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit in which the package seems to lie."""
    try:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not there")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "store.py").write_text("")
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *who, "commit", "-qm", "one"], check=True)
    monkeypatch.setattr(store, "__file__", str(tmp_path / "bench" / "store.py"))
    store._checkout.cache_clear()
    yield tmp_path
    store._checkout.cache_clear()


def test_the_commit_and_whether_the_code_differs(checkout):
    clean = provenance("cpu", "fp32")
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (checkout / "notes.txt").write_text("not code")
    store._checkout.cache_clear()
    assert provenance("cpu", "fp32")["dirty"] is False
    (checkout / "bench" / "store.py").write_text("changed")
    store._checkout.cache_clear()
    assert provenance("cpu", "fp32")["dirty"] is True


def test_somebody_elses_repository_is_not_ours(checkout, monkeypatch):
    inside = checkout / "venv" / "bench"
    inside.mkdir(parents=True)
    monkeypatch.setattr(store, "__file__", str(inside / "store.py"))
    assert "commit" not in provenance("cpu", "fp32")


def test_without_git_nothing_is_said(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "commit" not in provenance("cpu", "fp32")


def test_the_store_imports_no_torch():
    code = "import sys, bench.store, bench.files, bench.tables; print({'torch', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ----------------------------------------------------------------------------------------- draws, floors, older scoring

OLD = Path(__file__).parents[1] / "golden" / "rows_of_scoring_1"
"""Rows of the first scoring, two seeds each but the retrieval, of the first twelve pictures of `shapes`."""


def test_the_spread_is_that_of_all_draws(make):
    draws = np.random.default_rng(0).random((3, 5))
    per_seed = [
        scores(seed, 0.5)
        | {
            "null": {"one_to_one_iou": {"miou": own.mean()}},
            "draws": {"null": {"number": 5, "sd": {"one_to_one_iou": {"miou": own.std(ddof=1)}}}},
        }
        for seed, own in enumerate(draws)
    ]
    row = Row.of(RUN, per_seed, headline={"rule": "one_to_one_iou", "metric": "miou"})
    assert row.spread("null") == pytest.approx(draws.std(ddof=1), rel=1e-12)
    assert row.figure("null") == pytest.approx(draws.mean(), rel=1e-12)
    assert row.spread("exchanged") is None
    assert row.spread("null", "many_to_one_iou") is None


@pytest.mark.parametrize(("miou", "near"), [(0.31, True), (0.33, False)])
def test_the_largest_floor_and_who_is_near_it(miou, near):
    drawn = {"null": 0.30, "exchanged": 0.20}
    one = scores(0, miou) | {"constant": {"miou": 0.25}}
    one |= {name: {"one_to_one_iou": {"miou": value}} for name, value in drawn.items()}
    one["draws"] = {name: {"number": 5, "sd": {"one_to_one_iou": {"miou": 0.01}}} for name in drawn}
    row = Row.of(RUN, [one], headline={"rule": "one_to_one_iou", "metric": "miou"})
    assert row.floor == ("null", 0.30, pytest.approx(0.01))
    assert row.near_floor is near


def test_an_edited_figure_is_seen(tmp_path, make, caplog):
    store_ = Store(tmp_path)
    path = store_.save(make(0.5, 0.6), {})
    text = path.read_text()
    for old, new in (("0.55", "0.75"), ('"a note"', '"another"'), ("0.25", "0.35")):
        assert text.count(old)
        path.write_text(text.replace(old, new))
        caplog.clear()
        assert store_.rows() == []
        assert f"{path} is left out" in caplog.text
        assert "edited or damaged" in caplog.text
    path.write_text(text[: text.index(', "sha256"')] + "}")
    assert store_.rows() == []
    path.write_text(text)
    assert store_.rows() == [make(0.5, 0.6)]


def test_rows_of_the_first_scoring_are_scored_again_from_their_counts():
    rows = Store(OLD).rows()
    assert len(rows) == 3
    for row in rows:
        raw = json.loads(row.path.read_text())
        assert "scoring" not in raw
        assert (row.scoring, row.rescored) == (store.metrics.SCORING, True)
        assert row.key == raw["key"]
        rule = row.headline["rule"]
        assert row.headline_mean == pytest.approx(raw["mean"]["scores"][rule]["miou"], abs=1e-12)
        assert row.figure("constant") > 0
        assert row.figure("null") > 0
        assert row.spread("null") > 0
        assert (row.figure("held_out") is None) == (rule == "as_predicted")
        assert row.figure("exchanged") is None
        assert "--again" in row.per_seed[0]["exchanged_note"]
    objects, colour, retrieval = (
        next(row for row in rows if (row.run["method"], row.run["protocol"]) == name)
        for name in (("maskcontrast", "overclustering"), ("colour", "overclustering"), ("maskcontrast", "retrieval"))
    )
    # the background of objects stays where it was given, so their null is worth more than it was
    before = json.loads(objects.path.read_text())["mean"]["null"]["many_to_one_iou"]["miou"]
    assert objects.figure("null") > before + 0.01
    assert colour.figure("null") < colour.headline_mean
    assert retrieval.floor[0] == "constant"


def test_rows_whose_counts_are_gone_stay_as_they_are(tmp_path, caplog):
    for path in OLD.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = Store(tmp_path).rows()
    assert [row.scoring for row in rows] == [1, 1, 1]
    assert not any(row.rescored for row in rows)
    assert caplog.text.count("cannot be scored again") == 3


def test_an_edited_mean_of_the_first_scoring_is_seen(tmp_path, caplog):
    (path, *_) = sorted(OLD.glob("*.json"))
    data = json.loads(path.read_text())
    data["mean"]["nmi"] += 0.01
    (tmp_path / path.name).write_text(json.dumps(data))
    assert Store(tmp_path).rows() == []
    assert "its mean is not that of its seeds" in caplog.text
