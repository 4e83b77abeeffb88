"""Tables in writing: CSV, LaTeX, Markdown, HTML, and text for the terminal."""

from __future__ import annotations

import csv
import html
import io
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import registry
from bench.errors import SettingError
from bench.store import Row
from bench.tables import AS_PREDICTED, RULES, Cell, Label, Table, canonical, is_published, one_line, percent

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

    def label(self, label: Label) -> str:
        return self.escape(label.text) + self.marks(label.marks)

    def marks(self, marks: Sequence[int]) -> str:
        return self.mark.format(",".join(_letter(mark) for mark in marks)) if marks else ""

    def cell(self, cell: Cell | None) -> str:
        if cell is None:
            return self.missing
        if cell.mean is None:
            return self.missing + self.marks(cell.marks)
        figure = percent(cell.mean)
        if cell.std is not None:
            figure += f" {self.plus_minus} {percent(cell.std)}"
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
        return [f"{self.marks([n])} {self.escape(note)}" for n, note in enumerate(table.notes)]


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

    csv: one line per run, matching rule and metric, every figure in [0, 1] at full precision, for machines; a
        published figure has its source in the last column and no key, the figure of a setting that was tried beside
        others (a layer, a learning rate) has its name under `tried`.
    latex: a `table` that needs only the package booktabs. markdown: a pipe table. html: a page of its own.
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

    rows = [style.label(label) for label in table.rows]
    columns = [style.label(label) for label in table.columns]
    styler = pd.DataFrame(_grid(table, style)).style
    return styler.format_index(rows.__getitem__, axis=0).format_index(columns.__getitem__, axis=1)


def _latex(table: Table) -> str:
    tabular = _styler(table, _LATEX).to_latex(hrules=True, column_format="l" + "c" * len(table.columns)).rstrip()
    notes = "".join(f"\n\n\\par\\footnotesize {note}" for note in _LATEX.footnotes(table))
    caption = " ".join(_LATEX.sentences(table))
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{caption}}}\n{tabular}{notes}\n\\end{{table}}\n"
    )


def _markdown(table: Table) -> str:
    import tabulate

    names = [_MARKDOWN.label(label) for label in table.rows]
    grid = tabulate.tabulate(
        [[name, *cells] for name, cells in zip(names, _grid(table, _MARKDOWN), strict=True)],
        headers=["", *(_MARKDOWN.label(label) for label in table.columns)],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left", *["center"] * len(table.columns)],
    )
    below = [f"- {line}" for line in _MARKDOWN.sentences(table)] + [f"- {line}" for line in _MARKDOWN.footnotes(table)]
    return "\n".join([grid, "", *below]) + "\n"


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
    return page.replace("<head>", "<head>\n<title>densebench</title>", 1)


_CSV_FIELDS = (
    "key",
    "method",
    "method_version",
    "options",
    "checkpoint",
    "weights_sha256",
    "tap",
    "protocol",
    "preset",
    "preset_version",
    "clusters",
    "settings",
    "dataset",
    "split",
    "pictures",
    "limit",
    "fingerprint",
    "dtype",
    "precision",
    "tried",
    "rule",
    "metric",
    "headline",
    "seeds",
    "mean",
    "std",
    "held_out_mean",
    "held_out_std",
    "null_mean",
    "null_std",
    "published",
)


def _csv(table: Table) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for _, cell in sorted(table.cells.items()):
        run = _csv_run(cell.row)
        writer.writerows(run | figures for figures in _csv_figures(cell.row))
    return stream.getvalue()


def _csv_run(row: Row) -> dict[str, Any]:
    run, data = row.run, row.run.get("dataset") or {}
    checkpoint, settings = run.get("checkpoint") or {}, run.get("settings") or {}
    same = ("method", "method_version", "tap", "protocol", "preset", "preset_version", "dtype", "precision")
    return {
        "key": "" if is_published(row) else row.key,
        "published": run.get("published"),
        "seeds": len(row.seeds),
        **{name: run.get(name) for name in same},
        "options": canonical(run.get("options") or {}),
        "checkpoint": checkpoint.get("name"),
        "weights_sha256": checkpoint.get("sha256"),
        "clusters": settings.get("clusters"),
        "settings": canonical(settings),
        "dataset": data.get("name"),
        **{name: data.get(name) for name in ("split", "pictures", "limit", "fingerprint")},
    }


def _csv_figures(row: Row) -> list[dict[str, Any]]:
    """Every rule's every metric, the figures that need no matching (ARI, NMI), and those of every setting tried."""
    lines: list[dict[str, Any]] = []
    for rule, scores in (row.mean.get("scores") or {}).items():
        for metric in (name for name, value in scores.items() if not isinstance(value, list | dict)):
            parts = {"": "scores", "held_out_": "held_out", "null_": "null"}
            lines.append(
                {
                    "rule": rule,
                    "metric": metric,
                    "headline": int({"rule": rule, "metric": metric} == dict(row.headline)),
                    **{
                        f"{prefix}{statistic}": row.figure(part, rule, metric, statistic=statistic)
                        for prefix, part in parts.items()
                        for statistic in ("mean", "std")
                    },
                }
            )
    lines += [
        {"rule": "", "metric": name, "headline": 0, "mean": row.mean[name], "std": row.std.get(name)}
        for name in ("ari", "nmi", "best_on_val_miou", "best_on_val_epoch")
        if name in row.mean
    ]
    for tried, figures in (row.mean.get("tried") or {}).items():
        lines += [{"tried": tried, "metric": name, "headline": 0, "mean": value} for name, value in figures.items()]
    return lines


def text(table: Table, width: int = 120) -> str:
    """A table for the terminal, and below it every matching rule of every run side by side, or every measure.

    width: characters that a line may have; a wider table is broken into several with the same rows.
    """
    names = [_TEXT.label(label) for label in table.rows]
    figures = zip(*_grid(table, _TEXT), strict=True)
    columns = [
        [_wrapped(_TEXT.label(label), max(_NARROW, *map(len, cells))), *cells]
        for label, cells in zip(table.columns, figures, strict=True)
    ]
    blocks = [_text_block(["", *names], block) for block in _fold(columns, width - max(map(len, names)) - 2)]
    below = [*_TEXT.sentences(table), *(note.strip() for note in _TEXT.footnotes(table))]
    return "\n\n".join([*blocks, "\n".join(below), *filter(None, (_rules_block(table), _measures_block(table)))]) + "\n"


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


def _rules_block(table: Table) -> str:
    """What each run scores under every rule: how much of a figure is the method, and how much the matching."""

    def figures(row: Row) -> list[float | None]:
        by_rule = [row.figure("scores", rule, row.headline["metric"]) for rule in RULES]
        return [*by_rule, row.figure("held_out"), row.figure("null")]

    header = ["1-1 IoU", "1-1 pixels", "m-1 IoU", "m-1 pixels", "held out", "null"]
    block = _run_block(table, header, figures, lambda row: row.headline["rule"] != AS_PREDICTED)
    return block and (
        f"{block}\n"
        "held out: the headline's rule fitted on one half of the pictures and applied to the other, both ways.\n"
        "null: the headline after each picture's cluster ids are permuted on their own."
    )


def _measures_block(table: Table) -> str:
    """What each run scores whose ids are classes: nothing is matched; what was learnt may have had better epochs."""

    def figures(row: Row) -> list[float | None]:
        measures = ("miou", "miou_present", "pixel_accuracy", "class_accuracy")
        best = row.mean.get("best_on_val_miou")
        return [*(row.figure("scores", metric=metric) for metric in measures), best, row.figure("null")]

    header = ["mIoU", "of present", "pixel acc.", "class acc.", "best on val", "null"]
    block = _run_block(table, header, figures, lambda row: row.headline["rule"] == AS_PREDICTED)
    return block and (
        f"{block}\n"
        "Classes are predicted and nothing is matched. best on val: the epoch that scores best, which papers report.\n"
        "null: the mIoU after each picture's classes are permuted on their own."
    )


def _run_block(
    table: Table, header: Sequence[str], figures: Callable[[Row], list[float | None]], wanted: Callable[[Row], bool]
) -> str:
    """Figures of the runs that are wanted, one line each; "" where there are none."""
    import tabulate

    lines = []
    for (row, column), cell in sorted(table.cells.items()):
        if is_published(cell.row) or not wanted(cell.row):
            continue
        shown = [_MISSING if figure is None else percent(figure) for figure in figures(cell.row)]
        names = [one_line(label.text) for label in (table.rows[row], table.columns[column])]
        lines.append([_wrapped(name, 2 * _NARROW) for name in names] + shown)
    if not lines:
        return ""
    return tabulate.tabulate(
        lines,
        headers=["mean, percent", "", *header],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", "left", *["right"] * len(header)],
    )


def _letter(number: int) -> str:
    """0, 1, … -> a, b, …, z, aa, ab, …"""
    first, last = divmod(number, 26)
    return (_letter(first - 1) if first else "") + "abcdefghijklmnopqrstuvwxyz"[last]
