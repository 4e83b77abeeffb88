"""Tables show what rows hold, apart from each other where they differ, in every format."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest

from bench import formats, registry, tables
from bench.contracts import Scope
from bench.errors import InputError, SettingError
from bench.formats import render
from bench.metrics import SCORING
from bench.plan import ProtocolChoice
from bench.records import CheckpointCard, Choice, MethodCard, Preset, ProtocolCard, Source
from bench.settings import apply
from bench.store import Row
from bench.tables import Table, build

RULES = ("one_to_one_iou", "one_to_one_pixels", "many_to_one_iou", "many_to_one_pixels", "one_to_one_iou:background")
DATA = {
    "name": "tiny",
    "split": "val",
    "fingerprint": "ab" * 32,
    "pictures": 4,
    "classes": ["a", "b"],
    "background": None,
    "limit": None,
}
HOSTILE = r"a_b%c&d#e$f{g}h~i^j\k<l>|[m]*n`o'p\"q é 猫 ± \input{/etc/passwd}" + "\n\x1b[31mred"


def no_cards(kind: str, name: str) -> None:
    return None


@pytest.fixture
def row():
    def row(
        method: str = "swav",
        *mious: float,
        k: int = 2,
        rule: str = "one_to_one_iou",
        metric: str = "miou",
        settings: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        notes: tuple[str, ...] = (),
        dropped: int = 0,
        entry: dict[str, Any] | None = None,
        scoring: int = SCORING,
        **run: Any,
    ) -> Row:
        def by_rule(miou: float) -> dict[str, Any]:
            same: dict[str, Any] = {"miou_present": 0.8, "miou_occurring": 0.7, "pixel_accuracy": 0.9}
            same |= {"class_accuracy": 0.6, "foreground_miou": None, "iou": [miou, miou], "match": [0, 1]}
            return {name: {"miou": miou + i / 100, **same} for i, name in enumerate(RULES)}

        def drawn(sd: float) -> dict[str, Any]:
            return {"number": 5, "sd": {name: {"miou": sd, "foreground_miou": None} for name in RULES}}

        whole = {
            "method": method,
            "method_version": 1,
            "options": {},
            "checkpoint": {"name": "none"},
            "tap": "layer4",
            "protocol": "kmeans",
            "preset": "native",
            "preset_version": 1,
            "settings": {"clusters": k, "pca": 32} | (settings or {}),
            "dataset": DATA | (data or {}),
            "dtype": "float32",
            "precision": "fp32",
        } | run
        per_seed = [
            {
                "seed": seed,
                "scores": by_rule(miou),
                "held_out": by_rule(miou - 0.05),
                "constant": by_rule(0.03)["one_to_one_iou"],
                "null": by_rule(0.02),
                "exchanged": by_rule(0.05),
                "draws": {"held_out": drawn(0.02), "null": drawn(0.001), "exchanged": drawn(0.01)},
                "ari": 0.2,
                "nmi": 0.3,
            }
            | (entry or {})
            for seed, miou in enumerate(mious or (0.4,))
        ]
        headline = {"rule": rule, "metric": metric}
        return Row.of(whole, per_seed, headline=headline, notes=notes, dropped=dropped, scoring=scoring)

    return row


@pytest.fixture
def small(row) -> Table:
    """Three methods and the oracle under two protocols, one figure missing, one with a note."""
    over = {"protocol": "overclustering", "k": 50, "rule": "many_to_one_iou"}
    return build(
        [
            row("oracle", 1.0, 1.0),
            row("colour", 0.10, 0.12),
            row("swav", 0.40, 0.42),
            row("new_net", 0.30, 0.32),
            row("swav", 0.50, 0.54, **over),
            row("colour", 0.20, 0.24, **over, notes=("K was cut from 60 to 50",)),
        ],
        cards=no_cards,
    )


def labels(table: Table) -> tuple[list[str], list[str]]:
    return [label.text for label in table.rows], [label.text for label in table.columns]


# ------------------------------------------------------------------------------------------------ exact output


def test_markdown(small):
    assert (
        render(small, "markdown")
        == """\
|          |      kmeans K=2       |        overclustering K=50        |
|:---------|:---------------------:|:---------------------------------:|
| colour   |      11.0 ± 1.4       | <ins>24.0 ± 2.8</ins><sup>a</sup> |
| swav     |    **41.0 ± 1.4**     |          **54.0 ± 2.8**           |
| new\\_net | <ins>31.0 ± 1.4</ins> |                 –                 |
| oracle   |     *100.0 ± 0.0*     |                 –                 |

- mIoU (absent classes count 0); in percent, mean ± sample standard deviation over 2 seeds.
- Clusters are matched to classes with the labels they are scored on: one-to-one by IoU (kmeans); \
many-to-one by IoU (overclustering).
- Every pixel of the pictures' original size is scored, void left out.
- Data: tiny (split val, 4 pictures, 2 classes).
- Best in bold, second underlined.
- In italics, outside the ranking: oracle (sees the labels: an upper bound).
- <sup>a</sup> K was cut from 60 to 50

| in percent   |                     |  headline   |  of present  |  occurring  |  held out  |  constant  |\
   null    |  exchanged  |
|:-------------|:--------------------|:-----------:|:------------:|:-----------:|:----------:|:----------:|\
:---------:|:-----------:|
| colour       | kmeans K=2          | 11.0 ± 1.4  |     80.0     |    70.0     | 6.0 ± 2.2  |    3.0     |\
 2.0 ± 0.1 |  5.0 ± 0.9  |
| colour       | overclustering K=50 | 24.0 ± 2.8  |     80.0     |    70.0     | 19.0 ± 2.8 |    3.0     |\
 4.0 ± 0.1 |  7.0 ± 0.9  |
| swav         | kmeans K=2          | 41.0 ± 1.4  |     80.0     |    70.0     | 36.0 ± 2.2 |    3.0     |\
 2.0 ± 0.1 |  5.0 ± 0.9  |
| swav         | overclustering K=50 | 54.0 ± 2.8  |     80.0     |    70.0     | 49.0 ± 2.8 |    3.0     |\
 4.0 ± 0.1 |  7.0 ± 0.9  |
| new\\_net     | kmeans K=2          | 31.0 ± 1.4  |     80.0     |    70.0     | 26.0 ± 2.2 |    3.0     |\
 2.0 ± 0.1 |  5.0 ± 0.9  |
| oracle       | kmeans K=2          | 100.0 ± 0.0 |     80.0     |    70.0     | 95.0 ± 1.9 |    3.0     |\
 2.0 ± 0.1 |  5.0 ± 0.9  |

- of present: mean IoU over the classes with a pixel in the labels.
- occurring: over those with one in labels or in predictions after matching (the NaN-mean of STEGO and PiCIE).
- held out: the headline's rule fitted on one half of the pictures and applied to the other, both ways; ± over splits.
- constant: the most frequent class everywhere.
- null: each picture's ids permuted on their own, but those it was given, then matched anew; ± over draws.
- exchanged: each picture takes another's map of ids, then matched anew; ± over draws.
"""
    )


def test_latex(small):
    legend = (
        "of present: mean IoU over the classes with a pixel in the labels.",
        "occurring: over those with one in labels or in predictions after matching (the NaN-mean of STEGO and PiCIE).",
        "held out: the headline's rule fitted on one half of the pictures and applied to the other, both ways; "
        r"$\pm$ over splits.",
        "constant: the most frequent class everywhere.",
        "null: each picture's ids permuted on their own, but those it was given, then matched anew; "
        r"$\pm$ over draws.",
        r"exchanged: each picture takes another's map of ids, then matched anew; $\pm$ over draws.",
    )
    caption = (
        r"mIoU (absent classes count 0); in percent, mean $\pm$ sample standard deviation over 2 seeds. "
        "Clusters are matched to classes with the labels they are scored on: one-to-one by IoU (kmeans); "
        "many-to-one by IoU (overclustering). Every pixel of the pictures' original size is scored, void left out. "
        "Data: tiny (split val, 4 pictures, 2 classes). Best in bold, second underlined. "
        "In italics, outside the ranking: oracle (sees the labels: an upper bound)."
    )
    assert (
        render(small, "latex")
        == r"""% needs \usepackage{booktabs}
\begin{table}
\centering
\caption{CAPTION}
\begin{tabular}{lcc}
\toprule
 & kmeans K=2 & overclustering K=50 \\
\midrule
colour & 11.0 $\pm$ 1.4 & \underline{24.0 $\pm$ 2.8}\textsuperscript{a} \\
swav & \textbf{41.0 $\pm$ 1.4} & \textbf{54.0 $\pm$ 2.8} \\
new\_net & \underline{31.0 $\pm$ 1.4} & -- \\
oracle & \textit{100.0 $\pm$ 0.0} & -- \\
\bottomrule
\end{tabular}

\medskip
\begin{tabular}{llccccccc}
\toprule
in percent &  & headline & of present & occurring & held out & constant & null & exchanged \\
\midrule
colour & kmeans K=2 & 11.0 $\pm$ 1.4 & 80.0 & 70.0 & 6.0 $\pm$ 2.2 & 3.0 & 2.0 $\pm$ 0.1 & 5.0 $\pm$ 0.9 \\
colour & overclustering K=50 & 24.0 $\pm$ 2.8 & 80.0 & 70.0 & 19.0 $\pm$ 2.8 & 3.0 & 4.0 $\pm$ 0.1 & 7.0 $\pm$ 0.9 \\
swav & kmeans K=2 & 41.0 $\pm$ 1.4 & 80.0 & 70.0 & 36.0 $\pm$ 2.2 & 3.0 & 2.0 $\pm$ 0.1 & 5.0 $\pm$ 0.9 \\
swav & overclustering K=50 & 54.0 $\pm$ 2.8 & 80.0 & 70.0 & 49.0 $\pm$ 2.8 & 3.0 & 4.0 $\pm$ 0.1 & 7.0 $\pm$ 0.9 \\
new\_net & kmeans K=2 & 31.0 $\pm$ 1.4 & 80.0 & 70.0 & 26.0 $\pm$ 2.2 & 3.0 & 2.0 $\pm$ 0.1 & 5.0 $\pm$ 0.9 \\
oracle & kmeans K=2 & 100.0 $\pm$ 0.0 & 80.0 & 70.0 & 95.0 $\pm$ 1.9 & 3.0 & 2.0 $\pm$ 0.1 & 5.0 $\pm$ 0.9 \\
\bottomrule
\end{tabular}

\par\footnotesize \textsuperscript{a} K was cut from 60 to 50

LEGEND
\end{table}
""".replace("CAPTION", caption).replace("LEGEND", "\n\n".join(rf"\par\footnotesize {line}" for line in legend))
    )


def test_terminal(small):
    assert (
        formats.text(small)
        == """\
            kmeans K=2    overclustering
                                    K=50
-------  -------------  ----------------
colour      11.0 ± 1.4   *24.0 ± 2.8 [a]
swav      **41.0 ± 1.4      **54.0 ± 2.8
new_net    *31.0 ± 1.4                 –
oracle   (100.0 ± 0.0)                 –

mIoU (absent classes count 0); in percent, mean ± sample standard deviation over 2 seeds.
Clusters are matched to classes with the labels they are scored on: one-to-one by IoU (kmeans); \
many-to-one by IoU (overclustering).
Every pixel of the pictures' original size is scored, void left out.
Data: tiny (split val, 4 pictures, 2 classes).
** best, * second.
In brackets, outside the ranking: oracle (sees the labels: an upper bound).
[a] K was cut from 60 to 50

in percent                           1-1 IoU    1-1 pixels    m-1 IoU    m-1 pixels
------------  -------------------  ---------  ------------  ---------  ------------
colour        kmeans K=2                11.0          12.0       13.0          14.0
colour        overclustering K=50       22.0          23.0       24.0          25.0
swav          kmeans K=2                41.0          42.0       43.0          44.0
swav          overclustering K=50       52.0          53.0       54.0          55.0
new_net       kmeans K=2                31.0          32.0       33.0          34.0
oracle        kmeans K=2               100.0         101.0      102.0         103.0

in percent                           mIoU    of present    occurring    pixel acc.    class acc.
------------  -------------------  ------  ------------  -----------  ------------  ------------
colour        kmeans K=2             11.0          80.0         70.0          90.0          60.0
colour        overclustering K=50    24.0          80.0         70.0          90.0          60.0
swav          kmeans K=2             41.0          80.0         70.0          90.0          60.0
swav          overclustering K=50    54.0          80.0         70.0          90.0          60.0
new_net       kmeans K=2             31.0          80.0         70.0          90.0          60.0
oracle        kmeans K=2            100.0          80.0         70.0          90.0          60.0
mIoU: over all classes, absent ones as 0.
of present: mean IoU over the classes with a pixel in the labels.
occurring: over those with one in labels or in predictions after matching (the NaN-mean of STEGO and PiCIE).

in percent                            headline    held out    constant       null    exchanged
------------  -------------------  -----------  ----------  ----------  ---------  -----------
colour        kmeans K=2            11.0 ± 1.4   6.0 ± 2.2         3.0  2.0 ± 0.1    5.0 ± 0.9
colour        overclustering K=50   24.0 ± 2.8  19.0 ± 2.8         3.0  4.0 ± 0.1    7.0 ± 0.9
swav          kmeans K=2            41.0 ± 1.4  36.0 ± 2.2         3.0  2.0 ± 0.1    5.0 ± 0.9
swav          overclustering K=50   54.0 ± 2.8  49.0 ± 2.8         3.0  4.0 ± 0.1    7.0 ± 0.9
new_net       kmeans K=2            31.0 ± 1.4  26.0 ± 2.2         3.0  2.0 ± 0.1    5.0 ± 0.9
oracle        kmeans K=2           100.0 ± 0.0  95.0 ± 1.9         3.0  2.0 ± 0.1    5.0 ± 0.9
held out: the headline's rule fitted on one half of the pictures and applied to the other, both ways; ± over splits.
constant: the most frequent class everywhere.
null: each picture's ids permuted on their own, but those it was given, then matched anew; ± over draws.
exchanged: each picture takes another's map of ids, then matched anew; ± over draws.
"""
    )


class Cells(HTMLParser):
    """The texts of a page's cells, row by row, and the tags inside them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def test_html(small):
    page = render(small, "html")
    cells = Cells()
    cells.feed(page)
    assert cells.rows[:5] == [
        ["\xa0", "kmeans K=2", "overclustering K=50"],
        ["colour", "11.0 ± 1.4", "24.0 ± 2.8a"],
        ["swav", "41.0 ± 1.4", "54.0 ± 2.8"],
        ["new_net", "31.0 ± 1.4", "–"],
        ["oracle", "100.0 ± 0.0", "–"],
    ]
    assert cells.rows[5][2:] == ["headline", "of present", "occurring", "held out", "constant", "null", "exchanged"]
    assert cells.rows[8] == [
        "swav", "kmeans K=2", "41.0 ± 1.4", "80.0", "70.0", "36.0 ± 2.2", "3.0", "2.0 ± 0.1", "5.0 ± 0.9",
    ]  # fmt: skip
    assert len(cells.rows) == 12
    assert "<strong>41.0 ± 1.4</strong>" in page
    assert "<u>31.0 ± 1.4</u>" in page
    assert "<em>100.0 ± 0.0</em>" in page
    assert page.startswith("<!DOCTYPE html>")
    assert "utf-8" in page
    assert not cells.tags & {"script", "link", "img"}
    assert "http" not in page


def test_csv_has_every_rule_and_metric_at_full_precision(small):
    lines = list(csv.DictReader(io.StringIO(render(small, "csv"))))
    assert len(lines) == 6 * (len(RULES) * 6 + 2)
    wanted = {"method": "swav", "protocol": "kmeans", "headline": "1"}
    [line] = [line for line in lines if wanted.items() <= line.items()]
    assert (line["rule"], line["metric"], line["seeds"], line["clusters"]) == ("one_to_one_iou", "miou", "2", "2")
    assert float(line["mean"]) == pytest.approx(0.41, abs=1e-15)
    assert float(line["std"]) == pytest.approx(0.02 / 2**0.5, abs=1e-15)
    assert (line["scoring"], line["near_floor"], line["notes"]) == (str(SCORING), "0", "")
    drawn = ("held_out_mean", "held_out_std", "constant", "null_mean", "null_std", "exchanged_mean", "exchanged_std")
    assert [round(float(line[name]), 4) for name in drawn] == [0.36, 0.0216, 0.03, 0.02, 0.0009, 0.05, 0.0094]
    assert {line["rule"] for line in lines} == {*RULES, ""}
    assert {line["metric"] for line in lines if not line["rule"]} == {"ari", "nmi"}
    assert {line["mean"] for line in lines if line["metric"] == "foreground_miou"} == {""}
    assert sum(line["headline"] == "1" for line in lines) == 6


# ------------------------------------------------------------------------------------------------ ranking


def test_what_looks_equal_ranks_equal(row):
    table = build([row("a", 0.4001), row("b", 0.4002), row("c", 0.3), row("d", 0.2)], cards=no_cards)
    assert [table.cells[i, 0].rank for i in range(4)] == [1, 1, 2, 0]


def test_a_figure_alone_is_not_best(row):
    table = build([row("a", 0.4), row("oracle", 1.0)], cards=no_cards)
    assert {cell.rank for cell in table.cells.values()} == {0}
    assert "Best" not in render(table, "markdown")


def test_an_undefined_figure_is_shown_as_missing_and_not_ranked(row):
    table = build([row("a", 0.4, metric="foreground_miou"), row("b", 0.3, metric="foreground_miou")], cards=no_cards)
    assert [cell.rank for cell in table.cells.values()] == [0, 0]
    assert "| a |" in render(table, "markdown").replace("  ", " ")
    assert "mIoU without background" in render(table, "markdown")


def test_methods_compete_in_any_layout(small, row):
    rows = [cell.row for cell in small.cells.values()]
    turned = build(rows, index=("protocol", "clusters"), columns=("method",), cards=no_cards)
    assert labels(turned) == (["kmeans K=2", "overclustering K=50"], ["colour", "swav", "new_net", "oracle"])
    assert [turned.cells[0, i].rank for i in range(4)] == [0, 1, 2, 0]


# ------------------------------------------------------------------------------------------------ what differs


@dataclass(frozen=True)
class Options:
    width: int = 32


@dataclass(frozen=True)
class Settings:
    clusters: int = 0
    pca: int = 0
    tap: str = ""
    whiten: bool = True


def cards(kind: str, name: str) -> Any:
    if kind == "methods":
        released = (CheckpointCard(name="800ep", filename="a"), CheckpointCard(name="400ep", filename="b"))
        facts: dict[str, Any] = {"checkpoints": released, "options": Options, "default_tap": "layer4"}
        return MethodCard(name=name, summary="", factory="", **facts)
    preset = Preset(name="native", version=1, summary="", choices={"pca": Choice(32, Source.AUTHOR)})
    return ProtocolCard(name=name, summary="", run="", settings=Settings, presets=(preset,))


@pytest.mark.parametrize(
    ("run", "with_card", "without"),
    [
        ({"checkpoint": {"name": "800ep", "sha256": "ef" * 32}}, "swav", "swav@800ep"),
        ({"checkpoint": {"name": "400ep", "sha256": "ef" * 32}}, "swav@400ep", "swav@400ep"),
        ({"checkpoint": {"name": "random", "seed": 0}}, "swav@random", "swav@random"),
        ({"checkpoint": {"name": "pretrained"}}, "swav", "swav"),
        ({"tap": "layer3"}, "swav layer3", "swav"),
        ({"options": {"width": 64}}, "swav width=64", "swav"),
        ({"options": {"width": 32}}, "swav", "swav"),
    ],
)
def test_the_name_of_a_method(row, run, with_card, without):
    assert labels(build([row("swav", **run)], cards=cards))[0] == [with_card]
    assert labels(build([row("swav", **run)], cards=no_cards))[0] == [without]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"tap": "layer3"}, ["swav layer4", "swav layer3"]),
        ({"options": {"width": 64, "mode": "x"}}, ["swav width=null mode=null", "swav width=64 mode=x"]),
        ({"method_version": 2}, ["swav v1", "swav v2"]),
        ({"checkpoint": {"name": "none", "sha256": "ef" * 32}}, ["swav", "swav efefefef"]),
        ({"checkpoint": {"name": "none", "weights": "cd" * 32}}, ["swav", "swav cdcdcdcd"]),
        ({"checkpoint": {"name": "none", "seed": 3}}, ["swav", "swav seed=3"]),
    ],
)
def test_methods_that_differ_have_different_names(row, run, expected):
    table = build([row("swav"), row("swav", **run)], cards=no_cards)
    assert labels(table) == (expected, ["kmeans K=2"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"preset": "paper"}, ["kmeans:native K=2", "kmeans:paper K=2"]),
        ({"preset_version": 2}, ["kmeans v1 K=2", "kmeans v2 K=2"]),
        ({"settings": {"pca": 0, "whiten": False}}, ["kmeans pca=32 whiten=null K=2", "kmeans pca=0 whiten=false K=2"]),
        ({"precision": "bf16"}, ["kmeans fp32 K=2", "kmeans bf16 K=2"]),
        ({"dtype": "float16"}, ["kmeans float32 K=2", "kmeans float16 K=2"]),
        ({"fit": "train"}, ["kmeans fit=null K=2", "kmeans fit=train K=2"]),
        ({"data": {"name": "voc"}}, ["tiny kmeans K=2", "voc kmeans K=2"]),
        ({"data": {"split": "train"}}, ["tiny val kmeans K=2", "tiny train kmeans K=2"]),
        ({"data": {"pictures": 3, "fingerprint": "cd"}}, ["tiny 4 pictures kmeans K=2", "tiny 3 pictures kmeans K=2"]),
        ({"data": {"limit": 3, "pictures": 3}}, ["tiny kmeans K=2", "tiny limit=3 kmeans K=2"]),
        ({"data": {"fingerprint": "cd" * 32}}, ["tiny data abababab kmeans K=2", "tiny data cdcdcdcd kmeans K=2"]),
        ({"data": {"background": 0}}, ["tiny background=null kmeans K=2", "tiny background=0 kmeans K=2"]),
        ({"k": 11}, ["kmeans K=2", "kmeans K=11"]),
    ],
)
def test_runs_that_differ_are_never_mixed(row, change, expected):
    table = build([row("swav"), row("moco", **change)], cards=no_cards)
    assert labels(table) == (["swav", "moco"], expected)
    assert set(table.cells) == {(0, 0), (1, 1)}


def test_what_differs_between_protocols_is_said_too(row):
    table = build([row("swav"), row("swav", protocol="linear", precision="bf16", settings={"lr": 1})], cards=no_cards)
    assert labels(table)[1] == ["kmeans fp32 K=2", "linear bf16 K=2"]


def test_masks_that_are_read_beside_the_pictures_make_no_other_data_set(row):
    masks = {"set": "clean", "fingerprint": "cd" * 32}
    table = build([
        row("swav", 0.5, settings={"foreground": "auto", "background": "auto"}),
        row("swav", 0.5, settings={"foreground": "auto", "background": "cluster"}),
        row("swav", 0.5, settings={"foreground": "masks:clean", "background": "auto"}, data={"masks": masks}),
    ])  # fmt: skip
    expected = ["kmeans K=2", "kmeans background=cluster K=2", "kmeans foreground=masks:clean K=2"]
    assert [column.text for column in table.columns] == expected
    assert table.footer[-1] == "Data: tiny (split val, 4 pictures, 2 classes)."


def test_masks_of_one_name_and_other_content_stand_apart(row):
    first, second = (
        row(
            "swav",
            0.5,
            settings={"foreground": "masks:clean"},
            data={"masks": {"set": "clean", "fingerprint": content}},
        )
        for content in ("cd" * 32, "ef" * 32)
    )
    texts = {column.text for column in build([first, second]).columns}
    assert len(texts) == 2
    assert all(text.startswith("kmeans masks=") for text in texts)


def test_clusters_are_ordered_as_numbers_and_data_sets_apart(row):
    rows = [row("swav", k=k, data={"name": name}) for name in ("b", "a") for k in (100, 21, 500)]
    assert labels(build(rows, cards=no_cards))[1] == [
        "b kmeans K=21",
        "b kmeans K=100",
        "b kmeans K=500",
        "a kmeans K=21",
        "a kmeans K=100",
        "a kmeans K=500",
    ]


def test_settings_that_differ_from_the_preset_are_a_footnote_of_the_column(row):
    table = build([row(name, settings={"pca": 64, "whiten": True}) for name in ("swav", "moco")], cards=cards)
    assert table.notes == ("pca=64 (kmeans:native: 32)",)
    assert [label.marks for label in table.columns] == [(0,)]
    assert {cell.marks for cell in table.cells.values()} == {()}
    assert "kmeans K=2<sup>a</sup>" in render(table, "markdown")
    assert build([row("swav", settings={"tap": "layer3"})], cards=cards).notes == ()
    old = build([row("swav", preset_version=0)], cards=cards)
    assert old.notes == ("kmeans:native was at version 0; it is at 1 now",)


def test_footnotes_of_single_figures(row):
    cut, lossy = row("c", 0.1, notes=("cut", "cut")), row("d", 0.1, 0.1, 0.1, dropped=2)
    table = build([row("a", 0.4, 0.5, 0.6), row("b", 0.4, 0.5, 0.6), cut, lossy], cards=no_cards)
    assert table.notes == ("cut", "1 seed", "2 pictures could not be scored")
    assert [table.cells[i, 0].marks for i in range(4)] == [(), (), (0, 1), (2,)]
    assert "over 3 seeds unless noted" in table.footer[0]
    assert "<sup>a,b</sup>" in render(table, "markdown")


def test_different_headlines_in_one_column_are_noted_and_not_ranked_together(row):
    table = build([row("a", 0.4), row("b", 0.3), row("c", 0.9, rule="one_to_one_iou:background")], cards=no_cards)
    assert [table.cells[i, 0].rank for i in range(3)] == [1, 2, 0]
    assert table.notes[1].endswith("one-to-one by IoU (leftover clusters are background)")


def test_the_axes_can_be_chosen(row):
    rows = [row("swav", k=k, data={"name": name}) for name in ("a", "b") for k in (2, 3)]
    assert labels(build(rows, index=("method", "clusters"), columns=("dataset",), cards=no_cards)) == (
        ["swav K=2", "swav K=3"],
        ["a kmeans", "b kmeans"],
    )
    alone = build(rows[:1], index=("dataset",), columns=("method",), cards=no_cards)
    assert labels(alone) == (["a"], ["swav kmeans K=2"])
    for index, columns, words in (
        (("methods",), (), "Did you mean 'method'"),
        (("method",), ("method",), "twice"),
        (tables.AXES, (), "one side"),
    ):
        with pytest.raises(SettingError, match=words):
            build(rows, index=index, columns=columns)


def test_bad_requests_are_one_line(small):
    with pytest.raises(SettingError, match="Did you mean 'latex'"):
        render(small, "latx")
    with pytest.raises(InputError, match="bench eval"):
        build([])


# ------------------------------------------------------------------------------------------------ hostile text, widths


@pytest.fixture
def hostile(row) -> Table:
    first = row(HOSTILE, 0.4, data={"name": HOSTILE}, notes=(HOSTILE,))
    return build([first, row("*b", 0.3, data={"name": HOSTILE}), row("[c]", 0.2)], cards=no_cards)


def test_hostile_names_do_not_leave_their_cells(hostile):
    markdown = render(hostile, "markdown").splitlines()
    grid = [line for line in markdown[: markdown.index("")] if line.startswith("|")]
    unescaped = {line.replace("\\\\", "").replace("\\|", "").count("|") for line in grid}
    assert unescaped == {len(hostile.columns) + 2}
    assert len(grid) == 2 + 3
    below = [line for line in markdown[markdown.index("") :] if line.startswith("|")]
    assert {line.replace("\\\\", "").replace("\\|", "").count("|") for line in below} == {10}
    assert "<l>" not in render(hostile, "html")
    cells = Cells()
    cells.feed(render(hostile, "html"))
    assert {len(line) for line in cells.rows[:4]} == {len(hostile.columns) + 1}
    assert {len(line) for line in cells.rows[4:]} == {9}
    assert "\x1b" not in formats.text(hostile)
    methods = {line["method"] for line in csv.DictReader(io.StringIO(render(hostile, "csv")))}
    assert methods == {HOSTILE, "*b", "[c]"}


def test_latex_is_ascii_and_escaped(hostile):
    latex = render(hostile, "latex")
    assert latex.isascii()
    assert r"a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k" in latex
    assert r"e ? $\pm$ \textbackslash{}input\{/etc/passwd\}" in latex
    assert "\n{[}c{]} &" in latex


def engine() -> list[str] | None:
    if shutil.which("pdflatex"):
        return ["pdflatex", "-interaction=nonstopmode", "-halt-on-error"]
    return ["tectonic", "--only-cached"] if shutil.which("tectonic") else None


@pytest.mark.skipif(engine() is None, reason="neither pdflatex nor tectonic is installed")
@pytest.mark.parametrize("which", ["small", "hostile"])
def test_latex_compiles_with_booktabs_alone(tmp_path, request, which):
    body = render(request.getfixturevalue(which), "latex")
    page = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + body + "\\end{document}\n"
    (tmp_path / "table.tex").write_text(page, encoding="utf-8")
    done = subprocess.run([*(engine() or []), "table.tex"], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_wide_tables_are_broken_into_blocks(row):
    rows = [row("swav", k=k) for k in range(2, 22)]
    shown = formats.text(build(rows, cards=no_cards), width=80).split("\n\n")
    blocks = [block for block in shown if block.startswith("    ")]
    assert len(blocks) > 1
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 80
    assert sum(block.count("K=") for block in blocks) == 20
    assert all("swav" in block for block in blocks)


def test_registered_cards_are_found_and_others_are_not():
    assert tables.registered("protocols", "no such protocol") is None


def test_a_method_whose_probe_reads_another_map_has_one_line(row):
    card = registry.card("methods", "maskcontrast")

    def of(protocol, tap, version=None):
        checkpoint = {"name": "supervised-saliency"}
        version = version or card.version_of(tap)
        return row("maskcontrast", tap=tap, protocol=protocol, checkpoint=checkpoint, method_version=version)

    usual = build([of("kmeans", "embedding"), of("linear", "decoder")])
    assert [label.text for label in usual.rows] == ["maskcontrast"]
    before = build([of("kmeans", "embedding"), of("linear", "decoder"), of("linear", "decoder", version=1)])
    assert [label.text for label in before.rows] == ["maskcontrast", "maskcontrast v1"]
    other = build([of("kmeans", "embedding"), of("linear", "decoder"), of("linear", "embedding")])
    assert [label.text for label in other.rows] == ["maskcontrast", "maskcontrast embedding for linear"]


# ------------------------------------------------------------------------------------------------ floors


def test_what_is_not_above_a_floor_is_marked_with_that_floor(row):
    table = build([row("a", 0.4, 0.4), row("b", 0.068, 0.068), row("c", 0.069, 0.069)], cards=no_cards)
    assert table.notes == ("not above the floor exchanged, 5.0 ± 0.9 (its mean + 2 standard deviations)",)
    assert [table.cells[i, 0].marks for i in range(3)] == [(), (0,), ()]
    constant = {"miou": 0.5, "iou": [0.5, 0.5]}
    table = build(
        [row("a", 0.5, entry={"constant": constant}), row("b", 0.6, entry={"constant": constant})], cards=no_cards
    )
    assert table.notes == ("not above the floor constant, 50.0",)
    assert [table.cells[i, 0].marks for i in range(2)] == [(0,), ()]
    alone = build([row("a", 0.5, entry={"constant": constant})], cards=no_cards)
    assert (alone.columns[0].marks, alone.cells[0, 0].marks) == ((), (0,))
    for form in ("markdown", "latex", "html"):
        assert "not above the floor constant, 50.0" in render(table, form)
    assert "50.0 [a]" in formats.text(table)
    lines = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    marked = {line["method"]: (line["near_floor"], line["notes"]) for line in lines if line["headline"] == "1"}
    assert marked == {"a": ("1", "not above the floor constant, 50.0"), "b": ("0", "")}
    assert {line["near_floor"] for line in lines if line["headline"] == "0"} == {""}


ALONE = "it needs at least two pictures"
ONE_PICTURE: dict[str, Any] = {
    "held_out": None,
    "held_out_note": "held-out matching needs at least two pictures",
    "null": None,
    "null_note": ALONE,
    "exchanged": None,
    "exchanged_note": ALONE,
    "draws": {},
}


def test_with_one_picture_what_is_drawn_is_empty_and_noted_in_every_format(row):
    table = build([row("a", 0.4, entry=ONE_PICTURE)], cards=no_cards)
    assert table.notes == (
        "no held out: held-out matching needs at least two pictures",
        "no null, exchanged: it needs at least two pictures",
    )
    assert formats.text(table).split("\n\n")[-1].split("\n")[2].split()[-4:] == ["40.0", "3.0", "–", "–"]
    assert "|    40.0    |     80.0     |    70.0     |    3.0     |   –    |      –      |" in render(
        table, "markdown"
    )
    assert r"40.0 & 80.0 & 70.0 & 3.0 & -- & -- \\" in render(table, "latex").replace("–", "--")
    cells = Cells()
    cells.feed(render(table, "html"))
    assert cells.rows[-1][1:] == ["kmeans K=2", "40.0", "80.0", "70.0", "3.0", "–", "–"]
    line = next(line for line in csv.DictReader(io.StringIO(render(table, "csv"))) if line["headline"] == "1")
    drawn = [line[f"{part}_{s}"] for part in ("held_out", "null", "exchanged") for s in ("mean", "std")]
    assert (drawn, line["constant"]) == ([""] * 6, "0.03")
    assert line["notes"] == "; ".join(table.notes)
    for form in ("markdown", "latex", "html"):
        assert all(note in render(table, form) for note in table.notes)


def test_a_row_of_an_older_scoring_says_how_to_get_what_it_lacks(row):
    lacks = {"exchanged": None, "exchanged_note": "compute it again with --again"}
    table = build([row("a", 0.4, entry=lacks)], cards=no_cards)
    assert table.notes == ("no exchanged: compute it again with --again",)
    assert formats.text(table).split("\n\n")[-1].split("\n")[2].split()[-1] == "–"
    old = build([row("a", 0.4, scoring=1), row("b", 0.3)], cards=no_cards)
    assert old.notes == ("scored by version 1, now 2: --again scores it anew",)
    assert [old.cells[i, 0].marks for i in range(2)] == [(0,), ()]
    assert {cell.rank for cell in old.cells.values()} == {0}


def test_classes_that_are_predicted_have_floors_too(row):
    predicted = {"as_predicted": {"miou": 0.3, "miou_present": 0.4, "miou_occurring": 0.35, "pixel_accuracy": 0.7}}
    floor = {"as_predicted": {"miou": 0.1}}
    entry = {"scores": predicted, "null": floor, "exchanged": floor, "best_on_val_miou": 0.33, "draws": {}}
    entry |= {"held_out": None, "held_out_note": "nothing is matched with the labels"}
    table = build([row("a", 0.4, rule="as_predicted", protocol="linear", entry=entry)], cards=no_cards)
    assert table.notes == ()
    measures, floors = formats.text(table).split("\n\n")[-2:]
    assert measures.split("\n")[0].split("  ")[-1] == "best on val"
    assert measures.split("\n")[2].split()[-5:] == ["30.0", "40.0", "35.0", "70.0", "33.0"]
    assert floors.split("\n")[2].split()[-4:] == ["30.0", "3.0", "10.0", "10.0"]
    assert "held out" not in floors
    assert "1-1 IoU" not in formats.text(table)


def nulls(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all that can be null among the figures of a seed."""
    if path and path != ("seed",):
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from nulls(inner, (*path, name))


def test_any_figure_may_be_null_in_any_format(row):
    """`one_to_one_iou:background` is, for a data set without a background class."""
    more = {"best_on_val_miou": 0.5, "best_on_val_epoch": 3, "tried": {"lr=0.1": {"miou": 0.4}}, "settled": {"pca": 0}}
    whole = row("a", 0.4, 0.5, entry=more)
    paths = list(nulls(whole.per_seed[0]))
    assert ("scores", "one_to_one_iou:background") in paths
    for path in paths:
        per_seed = copy.deepcopy(whole.per_seed)
        for entry in per_seed:
            inner = entry
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = None
        broken = Row.of(whole.run, per_seed, headline=whole.headline)
        table = build([broken, row("b", 0.3)], cards=no_cards)
        for form in formats.FORMATS:
            assert render(table, form)
        assert formats.text(table)
    lines = csv.DictReader(io.StringIO(render(build([whole], cards=no_cards), "csv")))
    assert {line["metric"] for line in lines} >= {"miou", "miou_occurring", "best_on_val_epoch", "nmi"}


# ------------------------------------------------------------------------------------------------ values and widths


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([0.1, 0.01, 0.001, 0.0003], "0.1,0.01,0.001,0.0003"),
        ([100, 200, 300, 400, 500, 600, 700, 800], "100,200,300,400,500,600,700,800"),
        (True, "true"),
        (1e-4, "0.0001"),
        ("", "none"),
        ([], "none"),
        ("ab" * 32, "abababab"),
        ({"set": "clean", "fingerprint": "cd" * 32}, "clean:cdcdcdcd"),
        ("masks:./a/very/long/path/to/masks", "masks:./a/ve…ath/to/masks#978a8a1c"),
    ],
)
def test_values_are_shown_as_they_are_typed_and_long_text_by_its_ends(row, value, shown):
    table = build([row("a", settings={"x": value}), row("a", settings={"x": 0})], cards=no_cards)
    assert labels(table)[1] == [f"kmeans x={shown} K=2", "kmeans x=0 K=2"]


def test_settings_in_the_place_of_auto_are_noted():
    card = registry.card("protocols", "kmeans")
    native = next(preset for preset in card.presets if preset.name == "native")
    asked = apply(card.settings(), native.values() | {"clusters": 2}, "kmeans")
    choice = ProtocolChoice(card=card, preset=native, settings=asked, explicit=frozenset())
    made = choice.variants(Scope(classes=2, device="cpu"))[0].settings
    settings = json.loads(json.dumps(dataclasses.asdict(made)))

    def noted(**changes: Any) -> tuple[str, ...]:
        run = {"method": "a", "protocol": "kmeans", "preset": "native", "preset_version": native.version}
        run |= {"dataset": DATA, "settings": settings | changes}
        entry = {"seed": 0, "scores": {"one_to_one_iou": {"miou": 0.4}}}
        return build([Row.of(run, [entry], headline={"rule": "one_to_one_iou", "metric": "miou"})]).notes

    assert noted() == ()
    assert noted(pca=2) == ("pca=2 (kmeans:native: auto)",)
    assert noted(normalize="l2", background="cluster") == (
        "background=cluster (kmeans:native: auto)", "normalize=l2 (kmeans:native: auto)",
    )  # fmt: skip
    assert noted(engine="torch") == ("engine=torch (kmeans:native: auto)",)
    assert noted(algorithm="minibatch", engine="sklearn") == (
        "algorithm=minibatch (kmeans:native: lloyd)", "engine=sklearn (kmeans:native: auto)",
    )  # fmt: skip


def test_what_else_a_row_was_made_with_is_noted(row):
    assert build([row("a", precision="bf16")], cards=no_cards).notes == ("computed in bf16",)
    card = dataclasses.replace(registry.card("protocols", "finetune"), version=3)
    old = row("a", protocol="finetune", protocol_version=2, settings={"fractions": ["1%"]})
    table = build([old], cards=lambda kind, name: card if kind == "protocols" else None)
    assert table.notes[0] == "finetune was at version 2; it is at 3 now"
    assert labels(table)[1] == ["finetune 1% K=2"]


@pytest.mark.parametrize("rule", ["one_to_one_iou", "as_predicted"])
@pytest.mark.parametrize(
    "names", [("timm:vit_small_patch16_224.dino@random", "maskcontrast@clean embedding=random"), ("a",)]
)
def test_blocks_of_the_terminal_fit_its_width(row, rule, names):
    scores = {"as_predicted": dict.fromkeys(("miou", "miou_present", "miou_occurring", "pixel_accuracy"), 1.0)}
    entry = {"scores": scores, "best_on_val_miou": 1.0} if rule == "as_predicted" else {}
    ways: tuple[dict[str, Any], ...] = ({}, {"background": "cluster", "foreground": "masks:clean"}, {"pca": 2})
    rows = [row(name, 1.0, 1.0, rule=rule, settings=way, entry=entry) for name in names for way in ways]
    blocks = formats.text(build(rows, cards=no_cards)).split("\n\n")
    assert max(len(line) for block in blocks for line in block.split("\n") if not line.startswith("Clusters")) <= 120
    figures = [line for line in blocks[-1].split("\n") if "100.0" in line]
    assert len(figures) == len(names) * len(ways)
