"""The training loop on a small learner with dropout: figures, schedules, checkpoints and exact resume."""

from __future__ import annotations

import errno
import resource

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.checkpoints import read_checkpoint
from bench.errors import CheckpointError, InputError, StorageError
from bench.trainer import Course, Shelf, poly, train

ARCHITECTURE = {"network": "line", "width": 4}
RECORD = {"producer": "test", "settings": {"lr": 0.1}}


class Line:
    """A noisy line with dropout; `poison` is the step whose loss is not a number."""

    def __init__(self, poison: int | None = None) -> None:
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.poison = poison
        self.seen: list[int] = []
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05)

    def step(self, batch):
        self.seen.append(batch)
        data = torch.randn(8, 4, generator=torch.Generator().manual_seed(batch))
        loss = functional.mse_loss(self.net(data)[:, 0], data.sum(1))
        if batch == self.poison:
            loss = loss * float("nan")
        loss.backward()
        return {"loss": loss, "step": torch.tensor(float(batch))}

    def state_dict(self):
        return self.net.state_dict()

    def load_state_dict(self, state):
        self.net.load_state_dict(state)


def shelf_in(folder, **changes) -> Shelf:
    return Shelf(
        **{"folder": folder, "fix": "mend it", "architecture": ARCHITECTURE, "record": RECORD, "keep": 2, **changes}
    )


def course(steps: int = 10, **changes) -> Course:
    return Course(**{"steps": steps, "schedule": poly(steps), "seed": 3, "log_every": 3, "save_every": 4, **changes})


def run(learner: Line, steps: int = 10, done: int = 0, **options):
    return train(learner, learner.optimizer, range(done, 100), course(steps), done=done, **options)


def state(learner: Line) -> list[torch.Tensor]:
    moments = [value for entry in learner.optimizer.state.values() for value in entry.values()]
    return [*learner.net.state_dict().values(), *moments]


def equal(first: Line, second: Line) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state(first), state(second), strict=True))


def test_poly_is_that_of_the_released_code():
    by_epoch = poly(40 * 7, 0.9, hold=7)
    rates = [0.004 * by_epoch(7 * epoch + 3) for epoch in (0, 20, 39)]
    assert rates == pytest.approx([0.004, 0.002144, 0.000145], rel=3e-3)
    assert len({by_epoch(step) for step in range(7)}) == 1
    assert poly(10, 1.0)(5) == 0.5


def test_the_rate_rises_in_the_beginning():
    warm = poly(100, 0.0, warmup=4)
    assert [warm(step) for step in (0, 1, 3, 4, 50)] == [0.25, 0.5, 1, 1, 1]


def test_every_step_is_taken_once_and_reported():
    learner, reports = Line(), []
    last = run(learner, observers=[reports.append])
    assert learner.seen == list(range(10))
    assert [report.done for report in reports] == [3, 6, 9, 10]
    assert [report.steps for report in reports] == [3, 3, 3, 1]
    assert [report.figures["step"] for report in reports] == [1, 4, 7, 9]
    assert reports[1].lr == (pytest.approx(0.05 * (1 - 5 / 10) ** 0.9),)
    assert last is reports[-1]


@pytest.mark.parametrize("stop", [4, 8])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stop):
    straight = Line()
    run(straight)

    first = Line()
    with pytest.raises(KeyboardInterrupt):
        train(first, first.optimizer, _until(stop + 1), course(), shelf=shelf_in(tmp_path))
    second = Line()
    done = shelf_in(tmp_path).restore(second, second.optimizer)
    assert done == stop
    assert not equal(straight, second)
    run(second, done=done, shelf=shelf_in(tmp_path))
    assert equal(straight, second)


def _until(stop: int):
    yield from range(stop)
    raise KeyboardInterrupt


def test_dropout_differs_between_steps_and_seeds():
    losses = []
    for seed in (0, 1):
        learner, reports = Line(), []
        learner.optimizer = torch.optim.SGD(learner.net.parameters(), lr=0.0)
        options = course(3, log_every=1, seed=seed)
        train(learner, learner.optimizer, [5, 5, 5], options, observers=[reports.append])
        losses += [report.figures["loss"] for report in reports]
    assert len(set(losses)) == 6


def test_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    learner = Line.__new__(Line)
    with torch.random.fork_rng():
        learner.__init__()
    run(learner)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_says_what_it_is_and_is_plain_data(tmp_path):
    learner = Line()
    run(learner, shelf=shelf_in(tmp_path))
    held = read_checkpoint(tmp_path / "step-10.pt")
    assert held["architecture"] == ARCHITECTURE
    assert held["record"] == RECORD
    assert held["step"] == 10
    assert all(torch.equal(held["model"][key], value) for key, value in learner.net.state_dict().items())
    assert held["optimizer"]["state"][0]["exp_avg"].shape == (16, 4)


def test_the_last_checkpoints_are_kept(tmp_path):
    (tmp_path / ".step-4.pt.0123456789abcdef.tmp").write_bytes(b"of a run that was killed while it wrote")
    run(Line(), steps=21, shelf=shelf_in(tmp_path, keep=3))
    assert [path.name for path in shelf_in(tmp_path).paths()] == ["step-16.pt", "step-20.pt", "step-21.pt"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_loss_that_is_no_number_stops_the_run_by_name(tmp_path):
    learner = Line(poison=7)
    with pytest.raises(InputError, match=r"the loss of step 8 is nan .*: lower it \(--set probe\.lr=…\) or look"):
        train(learner, learner.optimizer, range(100), course(10, rate="probe.lr"), shelf=shelf_in(tmp_path))
    assert [path.name for path in shelf_in(tmp_path).paths()] == ["step-4.pt"]
    healthy = Line()
    assert shelf_in(tmp_path).restore(healthy, healthy.optimizer) == 4
    assert all(torch.isfinite(value).all() for value in state(healthy))


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    learner = Line()
    shelf = shelf_in(tmp_path)
    run(learner, steps=4, shelf=shelf)
    before = (tmp_path / "step-4.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        full = r"step-8\.pt cannot be written: the disk or quota is full; free some space or mend it$"
        with pytest.raises(StorageError, match=full):
            run(learner, steps=8, done=4, shelf=shelf)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-4.pt"]
    assert (tmp_path / "step-4.pt").read_bytes() == before


def test_a_writer_that_hides_the_disk_error_is_seen_through(tmp_path, monkeypatch):
    def save(held, file):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (that is how torch loses it)

    monkeypatch.setattr("torch.save", save)
    learner = Line()
    with pytest.raises(StorageError, match="full"):
        shelf_in(tmp_path).save(1, learner, learner.optimizer)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    learner = Line()
    run(learner, steps=2, shelf=shelf_in(tmp_path))
    other = shelf_in(tmp_path, architecture={"network": "line", "width": 5})
    with pytest.raises(CheckpointError, match=r"expected .*5"):
        other.restore(learner, learner.optimizer)


def test_nothing_is_left_to_do_when_all_is_done(tmp_path):
    learner = Line()
    assert run(learner, steps=4, done=4) is None
    assert shelf_in(tmp_path / "none").restore(learner, learner.optimizer) == 0
