"""Tables in writing: CSV, LaTeX, Markdown, HTML, and text for the terminal."""

from __future__ import annotations

import csv
import html
import io
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import registry
from bench.errors import SettingError
from bench.store import Row
from bench.tables import (
    AS_PREDICTED,
    RULES,
    Cell,
    Label,
    Table,
    canonical,
    digest,
    is_published,
    one_line,
    settled,
    tell_apart,
    with_spread,
)

__all__ = ["FORMATS", "render", "text"]

FORMATS = ("csv", "latex", "markdown", "html")

_MISSING = "–"
_NARROW = 16
"""Characters up to which a label in the terminal keeps on one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """How a format writes names, distinctions and footnotes. legend, aside: what the distinctions mean."""

    escape: Callable[[str], str]
    best: str
    second: str
    upper_bound: str
    mark: str
    plus_minus: str = "±"
    missing: str = _MISSING
    legend: str = "Best in bold, second underlined."
    aside: str = "In italics"

    def escaped(self, texts: Sequence[str]) -> list[str]:
        """Texts as they are written; those that the format's letters make equal are told apart by digests."""
        return tell_apart([self.escape(text) for text in texts], [f"({digest(text)})" for text in texts])

    def labels(self, labels: Sequence[Label]) -> list[str]:
        texts = self.escaped([label.text for label in labels])
        return [text + self.marks(label.marks) for text, label in zip(texts, labels, strict=True)]

    def marks(self, marks: Sequence[int]) -> str:
        return self.mark.format(",".join(_letter(mark) for mark in marks)) if marks else ""

    def cell(self, cell: Cell | None) -> str:
        if cell is None:
            return self.missing
        if cell.mean is None:
            return self.missing + self.marks(cell.marks)
        figure = with_spread(cell.mean, cell.std).replace("±", self.plus_minus)
        wrap = self.upper_bound if cell.upper_bound else {1: self.best, 2: self.second}.get(cell.rank, "{}")
        return wrap.replace("{}", figure) + self.marks(cell.marks)

    def sentences(self, table: Table) -> list[str]:
        cells = table.cells.values()
        lines = [*table.footer, *([self.legend] if any(cell.rank for cell in cells) else [])]
        bounds = list(dict.fromkeys(str(cell.row.run["method"]) for cell in cells if cell.upper_bound))
        if bounds:
            lines.append(f"{self.aside}, outside the ranking: {', '.join(bounds)} (sees the labels: an upper bound).")
        return [self.escape(line) for line in lines]

    def footnotes(self, table: Table) -> list[str]:
        return [f"{self.marks([n])} {note}" for n, note in enumerate(self.escaped(table.notes))]


_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",  # after a line's end they would be read as its options
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "–": "--",
    "—": "---",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
}


def _escape_latex(text: str) -> str:
    """Text that any LaTeX engine sets: letters lose their accents, what has no ASCII form becomes `?`."""
    return "".join(_LATEX_SPECIAL.get(c) or _ascii(c) for c in one_line(text))


def _ascii(character: str) -> str:
    if character.isascii():
        return character
    base = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_LATEX_SPECIAL.get(c, c) for c in base) or "?"


def _escape_markdown(text: str) -> str:
    escaped = "".join(f"\\{c}" if c in "\\`*_|[]~$#" else c for c in one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = _Style(
    escape=_escape_latex,
    best=r"\textbf{{}}",
    second=r"\underline{{}}",
    upper_bound=r"\textit{{}}",
    mark=r"\textsuperscript{{{}}}",
    plus_minus=r"$\pm$",
    missing="--",
)
_MARKDOWN = _Style(
    escape=_escape_markdown,
    best="**{}**",
    second="<ins>{}</ins>",
    upper_bound="*{}*",
    mark="<sup>{}</sup>",
)
_HTML = _Style(
    escape=lambda text: html.escape(one_line(text)),
    best="<strong>{}</strong>",
    second="<u>{}</u>",
    upper_bound="<em>{}</em>",
    mark="<sup>{}</sup>",
)
_TEXT = _Style(
    escape=one_line,
    best="**{}",
    second="*{}",
    upper_bound="({})",
    mark=" [{}]",
    legend="** best, * second.",
    aside="In brackets",
)


def render(table: Table, form: str) -> str:
    """A table as text of one of `FORMATS`.

    csv: one line per run, matching rule and metric, every figure in [0, 1] at full precision, for machines. `mean` and
        `std` are over seeds, `held_out_…`, `null_…` and `exchanged_…` over draws; `settled` is what `auto` came to,
        `others` what else of the run has no column, `notes` the footnotes. A published figure has its source in the
        last column and no key, the figure of a setting that was tried beside others (a layer, a learning rate) has its
        name under `tried`. A figure that there is none of is empty.
    latex: a `table` that needs only the package booktabs. markdown: a pipe table. html: a page of its own. All have
        the floors of every run in a second table.
    Raises SettingError for another format.
    """
    writers = {"csv": _csv, "latex": _latex, "markdown": _markdown, "html": _html}
    if form not in writers:
        raise SettingError(f"there is no format {form!r}, only {', '.join(FORMATS)}.{registry.near(form, FORMATS)}")
    return writers[form](table)


def _grid(table: Table, style: _Style) -> list[list[str]]:
    return [
        [style.cell(table.cells.get((row, column))) for column in range(len(table.columns))]
        for row in range(len(table.rows))
    ]


def _styler(table: Table, style: _Style) -> Any:
    """The figures as a pandas Styler; names are looked up by position, so equal names cannot clash."""
    import pandas as pd

    rows, columns = style.labels(table.rows), style.labels(table.columns)
    styler = pd.DataFrame(_grid(table, style)).style
    return styler.format_index(rows.__getitem__, axis=0).format_index(columns.__getitem__, axis=1)


def _latex(table: Table) -> str:
    tabular = _styler(table, _LATEX).to_latex(hrules=True, column_format="l" + "c" * len(table.columns)).rstrip()
    notes = [*_LATEX.footnotes(table)]
    below = _beside(table, _BESIDE)
    floors = ""
    if below.lines:
        rows = [[_LATEX.escape(cell) for cell in line] for line in (below.header, *below.lines)]
        head, *lines = (" & ".join(line) + r" \\" for line in rows)
        body = "\n".join([head, r"\midrule", *lines])
        form = "ll" + "c" * (len(below.header) - 2)
        floors = f"\n\n\\medskip\n\\begin{{tabular}}{{{form}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}"
        notes += [_LATEX.escape(sentence) for sentence in below.legend]
    caption = " ".join(_LATEX.sentences(table))
    under = "".join(f"\n\n\\par\\footnotesize {note}" for note in notes)
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{caption}}}\n{tabular}{floors}{under}\n\\end{{table}}\n"
    )


def _markdown(table: Table) -> str:
    names = _MARKDOWN.labels(table.rows)
    lines = [[name, *cells] for name, cells in zip(names, _grid(table, _MARKDOWN), strict=True)]
    header = ["", *_MARKDOWN.labels(table.columns)]
    parts = [_pipes(header, lines, 1), _listed([*_MARKDOWN.sentences(table), *_MARKDOWN.footnotes(table)])]
    below = _beside(table, _BESIDE)
    if below.lines:
        escaped = [[_MARKDOWN.escape(cell) for cell in line] for line in (below.header, *below.lines)]
        parts += [_pipes(escaped[0], escaped[1:], 2), _listed([_MARKDOWN.escape(text) for text in below.legend])]
    return "\n\n".join(parts) + "\n"


def _pipes(header: Sequence[str], lines: Sequence[Sequence[str]], names: int) -> str:
    import tabulate

    return tabulate.tabulate(
        lines,
        headers=header,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=[*["left"] * names, *["center"] * (len(header) - names)],
    )


def _listed(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


_HTML_LOOK: list[dict[str, Any]] = [
    {
        "selector": "",
        "props": "border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid;"
        "font-family: sans-serif; font-size: 14px;",
    },
    {"selector": "th, td", "props": "padding: 4px 12px; text-align: center; white-space: nowrap;"},
    {"selector": "tbody th", "props": "text-align: left; font-weight: normal;"},
    {"selector": "thead", "props": "border-bottom: 1px solid;"},
    {"selector": "caption", "props": "caption-side: bottom; text-align: left; font-size: 12px; padding-top: 8px;"},
]


def _html(table: Table) -> str:
    styler = _styler(table, _HTML).set_uuid("densebench").set_table_styles(_HTML_LOOK)
    styler = styler.set_caption("<br>".join([*_HTML.sentences(table), *_HTML.footnotes(table)]))
    page: str = styler.to_html(doctype_html=True, encoding="utf-8")
    page = page.replace("<head>", "<head>\n<title>densebench</title>", 1)
    return page.replace("</body>", f"{_html_beside(table)}</body>", 1)


def _html_beside(table: Table) -> str:
    import pandas as pd

    below = _beside(table, _BESIDE)
    if not below.lines:
        return ""
    escaped = [[_HTML.escape(cell) for cell in line] for line in (below.header, *below.lines)]
    styler = pd.DataFrame([line[1:] for line in escaped[1:]]).style.set_uuid("beside").set_table_styles(_HTML_LOOK)
    styler = styler.format_index([line[0] for line in escaped[1:]].__getitem__, axis=0)
    styler = styler.format_index(escaped[0][1:].__getitem__, axis=1)
    return str(styler.set_caption("<br>".join(map(_HTML.escape, below.legend))).to_html())


_CSV_FIELDS = (
    "key",
    "method",
    "method_version",
    "options",
    "checkpoint",
    "weights_sha256",
    "tap",
    "protocol",
    "protocol_version",
    "preset",
    "preset_version",
    "clusters",
    "settings",
    "settled",
    "dataset",
    "split",
    "pictures",
    "limit",
    "fingerprint",
    "dtype",
    "precision",
    "others",
    "scoring",
    "tried",
    "rule",
    "metric",
    "headline",
    "seeds",
    "mean",
    "std",
    "held_out_mean",
    "held_out_std",
    "constant",
    "null_mean",
    "null_std",
    "exchanged_mean",
    "exchanged_std",
    "near_floor",
    "notes",
    "published",
)


def _csv(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for (_, column), cell in sorted(table.cells.items()):
        marks = sorted({*cell.marks, *table.columns[column].marks})
        run = _csv_run(cell.row) | {"notes": "; ".join(table.notes[mark] for mark in marks)}
        writer.writerows(run | figures for figures in _csv_figures(cell.row))
    return stream.getvalue()


_CSV_OF_RUN = (
    "method", "method_version", "tap", "protocol", "protocol_version", "preset", "preset_version", "dtype", "precision",
)  # fmt: skip
_CSV_OF_DATA = ("split", "pictures", "limit", "fingerprint")


def _csv_run(row: Row) -> dict[str, Any]:
    run, data = row.run, row.run.get("dataset") or {}
    checkpoint, settings = run.get("checkpoint") or {}, run.get("settings") or {}
    return {
        "key": "" if is_published(row) else row.key,
        "published": run.get("published"),
        "seeds": len(row.seeds),
        **{name: run.get(name) for name in _CSV_OF_RUN},
        "options": canonical(run.get("options") or {}),
        "checkpoint": checkpoint.get("name"),
        "weights_sha256": checkpoint.get("sha256"),
        "clusters": settings.get("clusters"),
        "settings": canonical(settings),
        "settled": canonical({name: value for name, value in settled(row).items() if value != settings.get(name)}),
        "dataset": data.get("name"),
        **{name: data.get(name) for name in _CSV_OF_DATA},
        "others": canonical(_csv_others(run)),
        "scoring": "" if is_published(row) else row.scoring,
    }


def _csv_others(run: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the figures of a run and has no column of its own."""
    shown = {*_CSV_OF_RUN, "options", "checkpoint", "settings", "dataset", "published"}
    parts = {"checkpoint": {"name", "sha256"}, "dataset": {"name", *_CSV_OF_DATA}}
    inner = {
        part: {name: value for name, value in (run.get(part) or {}).items() if name not in columns}
        for part, columns in parts.items()
    }
    return {name: value for name, value in run.items() if name not in shown} | inner


def _csv_figures(row: Row) -> list[dict[str, Any]]:
    """Every rule's every metric, the figures that need no matching (ARI, NMI), and those of every setting tried."""
    lines = [
        _csv_figure(row, rule, metric)
        for rule, scores in (row.mean.get("scores") or {}).items()
        for metric in (scores or {row.headline["metric"]: None})
        if metric not in _NO_FIGURES
    ]
    lines += [
        {"rule": "", "metric": name, "headline": 0, "mean": row.mean[name], "std": row.std.get(name)}
        for name in ("ari", "nmi", "best_on_val_miou", "best_on_val_epoch")
        if name in row.mean
    ]
    for tried, figures in (row.mean.get("tried") or {}).items():
        lines += [
            {"tried": tried, "metric": name, "headline": 0, "mean": value} for name, value in (figures or {}).items()
        ]
    return lines


_NO_FIGURES = {"iou", "match"}
"""What stands among the figures of a rule and holds one for each class or cluster."""


def _csv_figure(row: Row, rule: str, metric: str) -> dict[str, Any]:
    drawn = {
        f"{part}_{statistic}": figure
        for part in ("held_out", "null", "exchanged")
        for statistic, figure in (("mean", row.figure(part, rule, metric)), ("std", row.spread(part, rule, metric)))
    }
    is_headline = {"rule": rule, "metric": metric} == dict(row.headline)
    return {
        "rule": rule,
        "metric": metric,
        "headline": int(is_headline),
        "mean": row.figure("scores", rule, metric),
        "std": row.figure("scores", rule, metric, statistic="std"),
        "constant": row.figure("constant", rule, metric),
        **drawn,
        "near_floor": int(row.near_floor) if is_headline and not is_published(row) else "",
    }


def text(table: Table, width: int = 120) -> str:
    """A table for the terminal, and below it every matching rule of every run side by side, or every measure.

    width: characters that a line may have; a wider table is broken into several with the same rows.
    """
    names = _TEXT.labels(table.rows)
    figures = zip(*_grid(table, _TEXT), strict=True)
    columns = [
        [_wrapped(label, max(_NARROW, *map(len, cells))), *cells]
        for label, cells in zip(_TEXT.labels(table.columns), figures, strict=True)
    ]
    blocks = [_text_block(["", *names], block) for block in _fold(columns, width - max(map(len, names)) - 2)]
    below = [*_TEXT.sentences(table), *(note.strip() for note in _TEXT.footnotes(table))]
    beside = [
        _beside(table, columns, wanted)
        for columns, wanted in ((_RULES, _is_matched), (_MEASURES, None), (_FLOORS, None))
    ]
    shown = [_text_beside(block, width) for block in beside if block.lines]
    return "\n\n".join([*blocks, "\n".join(below), *shown]) + "\n"


def _wrapped(label: str, width: int) -> str:
    return "\n".join(textwrap.wrap(label, width, break_long_words=False, break_on_hyphens=False))


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _fold(columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """Columns in as few consecutive blocks as fit the width, one column at least in each."""
    blocks: list[list[list[str]]] = [[]]
    used = 0
    for header, *cells in columns:
        needed = max(_width(header) + 2, *map(len, cells)) + 2  # tabulate widens headers by two
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = 0
        blocks[-1].append([header, *cells])
        used += needed
    return blocks


def _text_block(names: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    import tabulate

    header, *lines = zip(names, *columns, strict=True)
    return tabulate.tabulate(
        lines,
        headers=header,
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", *["right"] * len(columns)],
    )


def _text_beside(block: _Block, width: int) -> str:
    """A block for the terminal; the names of runs are wrapped to what its figures leave of the width."""
    import tabulate

    figures = [list(column) for column in zip(*(line[2:] for line in block.lines), strict=True)]
    needed = [max(len(title) + 2, *map(len, cells)) + 2 for title, cells in zip(block.header[2:], figures, strict=True)]
    names = enumerate(block.header[:2])
    first, second = (max(len(title) + 2, *(len(line[side]) for line in block.lines)) for side, title in names)
    rooms = _rooms(first, second, width - sum(needed) - 2)
    lines = [
        ["\n".join(textwrap.wrap(name, room)) for name, room in zip(line[:2], rooms, strict=True)] + [*line[2:]]
        for line in block.lines
    ]
    grid = tabulate.tabulate(
        lines,
        headers=block.header,
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", "left", *["right"] * len(needed)],
    )
    return "\n".join([grid, *block.legend])


def _rooms(first: int, second: int, both: int) -> tuple[int, int]:
    """Characters for two columns that would take so many: what one does not need is the other's."""
    one = min(first, max(both // 2, both - second, _NARROW))
    return one, max(min(second, both - one), _NARROW)


@dataclass(frozen=True, slots=True)
class _Column:
    """What stands beside the headline of each run. about: what that is, in a phrase."""

    title: str
    show: Callable[[Row], str]
    about: str = ""


@dataclass(frozen=True, slots=True)
class _Block:
    """Figures of runs, one line each; the first two cells are the names of its row and column in the table."""

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    legend: tuple[str, ...]


def _beside(table: Table, columns: Sequence[_Column], wanted: Callable[[Row], bool] | None = None) -> _Block:
    """Figures of the runs that are wanted, by default all; columns that are empty for each of them are left out."""
    runs = [
        (table.rows[row].text, table.columns[column].text, cell.row)
        for (row, column), cell in sorted(table.cells.items())
        if not is_published(cell.row) and (wanted is None or wanted(cell.row))
    ]
    shown = [(column, [column.show(row) for _, _, row in runs]) for column in columns]
    shown = [(column, cells) for column, cells in shown if any(cells) or column.title in _ALWAYS]
    lines = [
        (one_line(row), one_line(column), *(cells[i] or _MISSING for _, cells in shown))
        for i, (row, column, _) in enumerate(runs)
    ]
    return _Block(
        header=("in percent", "", *(column.title for column, _ in shown)),
        lines=tuple(lines),
        legend=tuple(f"{column.title}: {column.about}." for column, _ in shown if column.about),
    )


def _is_matched(row: Row) -> bool:
    return row.headline["rule"] != AS_PREDICTED


def _measure(metric: str) -> Callable[[Row], str]:
    return lambda row: with_spread(row.figure("scores", metric=metric), None)


def _under(rule: str) -> Callable[[Row], str]:
    return lambda row: with_spread(row.figure("scores", rule, row.headline["metric"]), None)


def _drawn(part: str) -> Callable[[Row], str]:
    return lambda row: with_spread(row.figure(part), row.spread(part))


_SHORT_RULES = ("1-1 IoU", "1-1 pixels", "m-1 IoU", "m-1 pixels")
_RULES = tuple(_Column(title, _under(rule)) for title, rule in zip(_SHORT_RULES, RULES, strict=True))
"""What each run scores under every rule: how much of a figure is the method, and how much the matching."""

_MEANS = (
    _Column("of present", _measure("miou_present"), "mean IoU over the classes with a pixel in the labels"),
    _Column(
        "occurring",
        _measure("miou_occurring"),
        "over those with one in labels or in predictions after matching (the NaN-mean of STEGO and PiCIE)",
    ),
)
_MEASURES = (
    _Column("mIoU", _measure("miou"), "over all classes, absent ones as 0"),
    *_MEANS,
    _Column("pixel acc.", _measure("pixel_accuracy")),
    _Column("class acc.", _measure("class_accuracy")),
    _Column(
        "best on val",
        lambda row: with_spread(row.mean.get("best_on_val_miou"), None),
        "mIoU after the epoch that scores best, which papers report; the headline is that of the last",
    ),
)
"""Other means of what each run scores under the headline's rule."""

_FLOORS = (
    _Column("headline", lambda row: with_spread(row.headline_mean, row.headline_std)),
    _Column(
        "held out",
        _drawn("held_out"),
        "the headline's rule fitted on one half of the pictures and applied to the other, both ways; ± over splits",
    ),
    _Column("constant", lambda row: with_spread(row.figure("constant"), None), "the most frequent class everywhere"),
    _Column(
        "null",
        _drawn("null"),
        "each picture's ids permuted on their own, but those it was given, then matched anew; ± over draws",
    ),
    _Column(
        "exchanged", _drawn("exchanged"), "each picture takes another's map of ids, then matched anew; ± over draws"
    ),
)
"""What each headline has to be above."""

_BESIDE = (_FLOORS[0], *_MEANS, *_FLOORS[1:])
_ALWAYS = {column.title for column in _FLOORS} - {"held out"}
"""Columns that are shown where all is empty: a floor that is missing is no floor that was passed."""


def _letter(number: int) -> str:
    """0, 1, … -> a, b, …, z, aa, ab, …"""
    first, last = divmod(number, 26)
    return (_letter(first - 1) if first else "") + "abcdefghijklmnopqrstuvwxyz"[last]
