"""Time is counted where it is spent, also on a device that works on while its host goes ahead."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

import callbacks.throughput
from callbacks.throughput import EVERY, Throughput
from utils.stopwatch import Stopwatch

FORWARD, LAUNCH, LOADING = 0.1, 0.002, 0.003  # seconds


class Machine:
    """A clock, and a device that has work until some time."""

    def __init__(self, device: str) -> None:
        self.module = SimpleNamespace(device=torch.device(device))
        self.now = self.busy_until = 0.0
        self.synchronised, self.processes = 0, 1

    def compute(self, seconds: float) -> None:
        self.now += LAUNCH
        self.busy_until = max(self.now, self.busy_until) + seconds
        if self.module.device.type == "cpu":
            self.finish()

    def finish(self, *_: object) -> None:
        self.now = max(self.now, self.busy_until)

    def synchronize(self, *_: object) -> None:
        self.synchronised += 1
        self.finish()

    def train(
        self,
        throughput: Throughput,
        steps: int,
        loading: float,
        first: float,
        after: Callable[[int], None] = lambda _: None,
        within: Callable[[int], None] = lambda _: None,
    ) -> None:
        """One epoch, in which something reads a number of every step when that is over."""
        trainer = SimpleNamespace(world_size=self.processes, is_last_batch=False)
        throughput.on_train_epoch_start(trainer, self.module)
        for index in range(steps):
            trainer.is_last_batch = index == steps - 1
            self.now += loading if index else first
            throughput.on_train_batch_start(trainer, self.module, range(8), index)
            within(index)
            self.compute(FORWARD)
            throughput.on_train_batch_end(trainer, self.module, None, range(8), index)
            after(index)
            self.finish()  # a progress bar shows the loss


@pytest.fixture
def machine(monkeypatch):
    def make(device: str) -> Machine:
        made = Machine(device)
        clock = SimpleNamespace(perf_counter=lambda: made.now)
        monkeypatch.setattr(callbacks.throughput, "time", clock)
        monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
        return made

    return make


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("loading", [LOADING, FORWARD])
@pytest.mark.parametrize(("steps", "epochs"), [(100, 1), (2, 40), (1, 3)])
def test_the_share_is_that_of_the_loader(machine, device, loading, steps, epochs):
    made, throughput = machine(device), Throughput()
    for _ in range(epochs):
        made.train(throughput, steps, loading, first=0.5)
    waits = epochs * (0.5 + (steps - 1) * loading)
    assert throughput.data_wait_share == pytest.approx(waits / made.now, rel=0.02)
    # What passes between a step's end and the next one's start, a picture say, is of neither.
    assert throughput.images_per_second == pytest.approx(8 * steps * epochs / made.now, rel=0.02)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_readout_after_a_step_is_no_wait_for_the_loader(machine, device):
    """As `Health` is, which looks at the very steps that are timed on a GPU."""
    made = machine(device)
    stopwatch = Stopwatch(lambda: made.now)
    throughput = Throughput(stopwatch)

    def read_out(step: int) -> None:
        if step % EVERY == 0:
            with stopwatch.timing("readouts/health"):
                made.now += 4 * FORWARD

    made.train(throughput, 100, LOADING, first=0.0, after=read_out)
    training = made.now - 10 * 4 * FORWARD
    assert throughput.data_wait_share == pytest.approx(99 * LOADING / training, rel=0.05)
    assert throughput.images_per_second == pytest.approx(8 * 100 / training, rel=0.02)


def test_a_readout_within_a_step_is_no_part_of_it(machine):
    """As the agreement of gradients is, which passes the batch once more."""
    made = machine("cpu")
    stopwatch = Stopwatch(lambda: made.now)
    throughput = Throughput(stopwatch)

    def read_out(step: int) -> None:
        with stopwatch.timing("readouts/health"):
            made.now += FORWARD

    for _ in range(2):  # what is read out between the epochs is not counted twice
        made.train(throughput, 50, LOADING, first=0.2, after=read_out, within=read_out)
        read_out(0)
    training = 2 * (0.2 + 49 * LOADING + 50 * (LAUNCH + FORWARD))
    assert throughput.seconds == pytest.approx(training)
    assert throughput.images_per_second == pytest.approx(8 * 100 / training)


def test_images_are_those_of_all_processes_and_seconds_those_of_one(machine):
    made, throughput = machine("cpu"), Throughput()
    made.processes = 3
    made.train(throughput, 10, LOADING, first=0.0)
    assert throughput.images == 3 * 10 * 8
    assert throughput.seconds == pytest.approx(made.now)


def test_no_share_is_more_than_all(machine):
    """On a GPU most waits are taken to be like those that are timed, which may be the long ones."""
    made, throughput = machine("cuda"), Throughput()

    def stall(step: int) -> None:
        made.now += 100.0 * (step == 0)

    made.train(throughput, 9, LOADING, first=0.0, after=stall)
    assert throughput.data_wait_share == 1.0


def test_few_steps_are_awaited(machine):
    made = machine("cuda")
    made.train(Throughput(), 10 * EVERY, LOADING, first=0.0)
    assert made.synchronised <= 10 + 2


def test_a_processor_is_not_awaited(machine):
    made = machine("cpu")
    made.train(Throughput(), 30, LOADING, first=0.0)
    assert made.synchronised == 0


def test_nothing_trained_took_no_time():
    assert (Throughput().data_wait_share, Throughput().images_per_second) == (0.0, 0.0)
