"""The command line: parse, build one record, call one function, print. Heavy imports stay inside the commands."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import paths

__all__ = ["app", "main"]

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score the dense features of any backbone under every published convention at once.",
)
data = typer.Typer(no_args_is_help=True, help="Make or fetch data sets, and choose the default.")
cache = typer.Typer(no_args_is_help=True, help="Look at or empty the feature cache.")
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")

log = logging.getLogger("bench")

Results = Annotated[Path | None, typer.Option(help="folder of rows [default: DENSEBENCH_RESULTS or results/runs]")]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="folder of the feature cache [default: DENSEBENCH_CACHE]")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]

_INTERRUPTED = 130

_DETERMINISTIC = (
    "without oneDNN on a CPU, 2 to 3 times slower: the same bits under any ONEDNN_MAX_CPU_ISA, though not on any "
    "processor; on a GPU by cuDNN's deterministic algorithms"
)


def main() -> None:
    """Run the command line; exit status 0 done, 2 wrong input, 1 a fault of ours, 130 interrupted."""
    sys.exit(_run())


def _run() -> int:
    # several libraries bring a thread pool each; spinning ones starve the others on few cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    from bench.errors import InputError

    try:
        status = int(app(standalone_mode=False) or 0)
    except InputError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except Exception as error:
        # usage errors of the command line: older typer raises click's own, newer ones carry a copy of it
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        message = error.format_message()
        if "\n" in message:  # a command without arguments shows its help
            sys.stderr.write(f"{message}\n")
            return 2
        context = getattr(error, "ctx", None)
        return _refuse(f"{message.rstrip('.')}; see `{context.command_path if context else 'bench'} --help`")
    if status == _INTERRUPTED:  # some versions of typer turn the interrupt into this status themselves
        sys.stderr.write("bench: interrupted; finished rows are kept, the same command goes on from there\n")
    return status


def _refuse(message: str) -> int:
    """Say in one line what is wrong with the input; messages of plugins may have several."""
    sys.stderr.write(f"bench: {' '.join(message.splitlines())}\n")
    return 2


def _print(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


@app.command()
def eval(
    method: Annotated[list[str], typer.Option(help="NAME[@CHECKPOINT], timm:NAME or file.py:factory; repeatable")],
    protocol: Annotated[list[str], typer.Option(help="NAME[:PRESET]; repeatable")],
    dataset: Annotated[str | None, typer.Option(help="registered name or folder [default: `bench data use`]")] = None,
    split: Annotated[str | None, typer.Option(help="split to score [default: the data set's]")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="released name, file or `random`, for the one method")] = None,
    preset: Annotated[str | None, typer.Option(help="preset of every protocol without its own")] = None,
    clusters: Annotated[str | None, typer.Option(help="every K of overclustering, e.g. 21,50,100")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="number of seeds [default: the protocol's]")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="the first seed")] = 0,
    size: Annotated[str | None, typer.Option(help="network input: native, N (stretched to N×N) or HxW")] = None,
    batch_size: Annotated[int, typer.Option(min=0, help="pictures a batch [default: by pixels]")] = 0,
    workers: Annotated[int, typer.Option(min=-1, help="threads that decode [default: 1 on a CPU, 8 on a GPU]")] = -1,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N names of each split")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="[owner.]key=value; repeatable")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="price the job and stop")] = False,
    again: Annotated[bool, typer.Option("--again", help="compute finished rows again")] = False,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="score pictures that are in the train split too")
    ] = False,
    save_predictions: Annotated[
        bool, typer.Option("--save-predictions", help="write label maps beside the rows")
    ] = False,
    as_json: Json = False,
    results: Results = None,
    cache_folder: CacheFolder = None,
) -> None:
    """Score methods under protocols; prints one table. Protocols that train run under torchrun as `train` does."""
    from bench.datasets import default_dataset
    from bench.errors import SettingError
    from bench.plan import Request, make_plan

    if precision not in ("fp32", "bf16"):
        raise SettingError(f"--precision {precision} does not fit: expected fp32 or bf16")
    request = Request(
        methods=tuple(method),
        protocols=tuple(protocol),
        dataset=dataset or default_dataset(),
        split=split,
        checkpoint=checkpoint,
        preset=preset,
        clusters=_whole_numbers(clusters),
        seeds=seeds,
        seed=seed,
        size=size,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        limit=limit,
        overrides=tuple(set_ or ()),
        again=again,
        allow_overlap=allow_overlap,
        save_predictions=save_predictions,
        results=results or paths.results_root(),
        cache=cache_folder or paths.cache_root(),
    )
    if dry_run:
        from bench.price import price

        _print(price(make_plan(request, fetch=False)))
        return
    from bench import formats, tables
    from bench.evaluate import evaluate
    from bench.processes import in_turn, processes

    with processes(device) as own:
        rows = evaluate(in_turn(lambda: make_plan(dataclasses.replace(request, device=own))))
    if os.environ.get("RANK", "0") == "0":
        _print(json.dumps([row.to_json() for row in rows], indent=1) if as_json else formats.text(tables.build(rows)))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _whole_numbers(text: str | None) -> tuple[int, ...]:
    from bench.errors import SettingError

    if text is None:
        return ()
    parts = _listed(text)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise SettingError(f"--clusters {text!r} was not understood; expected whole numbers above 0, e.g. 21,50,100")
    return tuple(int(part) for part in parts)


@app.command()
def train(
    producer: Annotated[str, typer.Argument(help="what to train, see `bench list producers`")],
    dataset: Annotated[str | None, typer.Option(help="registered name or folder [default: `bench data use`]")] = None,
    masks: Annotated[str | None, typer.Option(help="mask set, or ./FOLDER [default: clean, or the only one]")] = None,
    preset: Annotated[str | None, typer.Option(help="named choices [default: the data set's, else small]")] = None,
    init: Annotated[str | None, typer.Option(help="weights of the body: METHOD[@CHECKPOINT] or random")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value; repeatable")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="steps instead of the preset's")] = None,
    output: Annotated[Path | None, typer.Option(help="run folder [default: a new one below results/runs]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    export: Annotated[str | None, typer.Option(help="write the checkpoint for other code too: reference")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    seed: Annotated[int, typer.Option(min=0, help="of weights, order and views")] = 0,
    workers: Annotated[int, typer.Option(min=-1, help="processes that make batches [default: 1, GPU: 8]")] = -1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="of each training process; the result depends on it [default: 2, several: 1 each]"),
    ] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help=_DETERMINISTIC)] = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="write figures to Weights & Biases too")] = False,
) -> None:
    """Train a checkpoint; prints its run folder. Several processes: torchrun --nproc-per-node N -m bench train …"""
    from bench.produce import TrainRequest, produce

    folder = produce(TrainRequest(
        producer=producer, dataset=dataset, masks=masks, preset=preset, init=init, overrides=tuple(set_ or ()),
        steps=steps, output=output, resume=resume, export=export, device=device, precision=precision, seed=seed,
        workers=workers, threads=threads, deterministic=deterministic, wandb=wandb,
    ))  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        _print(str(folder))


@app.command()
def masks(
    estimator: Annotated[str, typer.Option(help="NAME[@CHECKPOINT], see `bench list estimators`")],
    dataset: Annotated[str | None, typer.Option(help="registered name or folder [default: `bench data use`]")] = None,
    split: Annotated[str | None, typer.Option(help="only the pictures of this split [default: of all]")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="released name, file or `random`")] = None,
    output: Annotated[Path | None, typer.Option(help="folder [default: saliency_ESTIMATOR/ of the data set]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="[masks.|ESTIMATOR.]key=value; repeatable")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N pictures")] = None,
    batch_size: Annotated[int, typer.Option(min=0, help="pictures a batch [default: 4 on a CPU, 32 on a GPU]")] = 0,
    workers: Annotated[int, typer.Option(min=-1, help="threads that read, and write [default: one a core]")] = -1,
    device: Device = "auto",
) -> None:
    """Masks of the salient objects in pictures, to learn from; prints their folder."""
    from bench.masks import MaskRequest, make_masks

    _print(str(make_masks(MaskRequest(
        estimator=estimator, dataset=dataset, split=split, checkpoint=checkpoint, output=output,
        overrides=tuple(set_ or ()), limit=limit, batch_size=batch_size, workers=workers, device=device,
    ))))  # fmt: skip


@app.command()
def predict(
    pictures: Annotated[list[Path], typer.Argument(help="picture files, or folders of pictures")],
    method: Annotated[str, typer.Option(help="NAME[@CHECKPOINT], timm:NAME or file.py:factory")],
    row: Annotated[str | None, typer.Option(help="paint by this finished row: its key, or the beginning of it")] = None,
    clusters: Annotated[int | None, typer.Option(help="paint by K-means with this K on the pictures given")] = None,
    output: Annotated[Path | None, typer.Option(help="folder of maps [default: a new one below results/runs]")] = None,
    size: Annotated[str | None, typer.Option(help="network input: native, N (stretched to N×N) or HxW")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="[owner.]key=value, with --clusters")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="of K-means")] = 0,
    device: Device = "auto",
    results: Results = None,
    cache_folder: CacheFolder = None,
) -> None:
    """Coloured maps of any pictures; prints their folder."""
    from bench.predict import PredictRequest
    from bench.predict import predict as paint

    _print(str(paint(PredictRequest(
        method=method, pictures=tuple(pictures), row=row, clusters=clusters, output=output, size=size,
        overrides=tuple(set_ or ()), seed=seed, device=device, results=results or paths.results_root(),
        cache=cache_folder or paths.cache_root(),
    ))))  # fmt: skip


@app.command("list")
def list_(
    kind: Annotated[
        str, typer.Argument(help="methods, protocols, datasets, producers, estimators, checkpoints or presets")
    ],
    as_json: Json = False,
) -> None:
    """What is registered, built-ins and plugins."""
    from bench.listing import listing, render

    rows = listing(kind)
    _print(json.dumps(rows, indent=1) if as_json else render(kind, rows))


@app.command()
def table(
    results: Results = None,
    format: Annotated[str, typer.Option(help="csv, latex, markdown or html")] = "markdown",
    output: Annotated[Path | None, typer.Option(help="file to write [default: standard output]")] = None,
    published: Annotated[bool, typer.Option("--published", help="figures of papers beside ours")] = False,
    rows_: Annotated[str, typer.Option("--rows", help="axes along the rows, e.g. method,dataset")] = "method",
    columns: Annotated[str, typer.Option(help="axes along the columns; those not named come after them")] = "",
) -> None:
    """One table of all rows."""
    from bench import formats, tables
    from bench.errors import InputError
    from bench.files import write_atomic
    from bench.store import Store

    folder = results or paths.results_root()
    rows = Store(folder).rows()
    if not rows:
        raise InputError(
            f"there are no rows in {folder}: make some with `bench eval`, or name their folder with --results"
        )
    if published:
        from bench.published import beside, left_out

        papers = beside(rows)
        for sentence in left_out(rows):
            log.info("%s", sentence)
        if not papers:
            log.info("nothing is published under the protocols, settings and data sets of these rows")
        rows = [*rows, *papers]
    text = formats.render(tables.build(rows, index=_listed(rows_), columns=_listed(columns)), format)
    if output is None:
        _print(text)
    else:
        write_atomic(output, text.encode())
        log.info("written to %s", output)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="METHOD or ESTIMATOR[@CHECKPOINT], see `bench list checkpoints`")],
) -> None:
    """Download and verify released weights."""
    from bench import weights
    from bench.plan import parse_owner

    card, wanted, argument = parse_owner(name)
    checkpoint = weights.resolve(card, wanted, weights_dir=paths.weights_dir(), fetch=True, argument=argument)
    _print(str(checkpoint.path) if checkpoint.path else f"{name} has no file of weights to fetch")


@data.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="registered data set")],
    root: Annotated[Path | None, typer.Option(help="folder to make or use [default: DENSEBENCH_DATA/NAME]")] = None,
    masks: Annotated[str | None, typer.Option(help="mask set to fetch too; voc: supervised, unsupervised")] = None,
) -> None:
    """Make or fetch a data set; does nothing when it is complete."""
    from bench import datasets

    _print(str(datasets.prepare(name, root, masks=masks)))


@data.command("use")
def data_use(name: Annotated[str, typer.Argument(help="registered data set or folder")]) -> None:
    """Set the data set that commands read when none is named."""
    from bench import datasets

    datasets.use(name)
    log.info("commands without --dataset read %s now", name)


@app.command()
def doctor(
    dataset: Annotated[str | None, typer.Option(help="data set to open [default: `bench data use`]")] = None,
    method: Annotated[list[str] | None, typer.Option(help="methods to load and run on one picture; repeatable")] = None,
    device: Device = "auto",
    results: Results = None,
    cache_folder: CacheFolder = None,
) -> None:
    """Open everything for real; ends with status 2 and the fixes when something is wrong."""
    from bench.doctor import examine

    problems = 0
    for finding in examine(
        dataset, tuple(method or ()), device, results or paths.results_root(), cache_folder or paths.cache_root()
    ):
        problems += not finding.fine
        _print(f"{'ok  ' if finding.fine else 'FAIL'} {finding.text}")
    if problems:
        raise typer.Exit(2)


@cache.command("info")
def cache_info(cache_folder: CacheFolder = None) -> None:
    """Entries and size of the cache."""
    from bench.cache import Cache

    store = Cache(cache_folder or paths.cache_root())
    entries = list(store.entries())
    _print(
        f"{store.root}: {len(entries)} entries, {sum(size for _, size in entries) / 1e9:.2f} GB; "
        f"{store.free() / 1e9:.1f} GB of disk free"
    )


@cache.command("clear")
def cache_clear(cache_folder: CacheFolder = None) -> None:
    """Remove every entry of the cache."""
    from bench.cache import Cache

    store = Cache(cache_folder or paths.cache_root())
    _print(f"{store.clear() / 1e9:.2f} GB freed in {store.root}")


@app.command()
def quickstart(
    limit: Annotated[int | None, typer.Option(min=1, help="score the first N pictures [default: 200]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="training steps instead of the preset's")] = None,
    results: Results = None,
    cache_folder: CacheFolder = None,
) -> None:
    """Train MaskContrast on the embedded data set, six times, and score it beside the floors; downloads nothing."""
    from bench.quickstart import quickstart as story

    _print(story(results or paths.results_root(), cache_folder or paths.cache_root(), limit=limit, steps=steps))


def _version(shown: bool) -> None:
    if shown:
        from bench import __version__

        _print(f"densebench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass
