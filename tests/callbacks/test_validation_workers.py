"""Processes that load validation images begin small, and change nothing."""

import multiprocessing

import pytest
from pytorch_lightning import Callback

import agents.trainer
from tests.conftest import assert_same, weights


class Watch(Callback):
    """Keeps the processes that there are at every step and after every validation."""

    def __init__(self):
        self.before = set(multiprocessing.active_children())
        self.at_steps, self.validating, self.testing = [], [], []

    def processes(self):
        return set(multiprocessing.active_children()) - self.before

    def on_train_batch_start(self, *_):
        self.at_steps.append(self.processes())

    def on_validation_end(self, *_):
        self.validating.append(self.processes())

    def on_test_batch_start(self, *_):
        self.testing.append(self.processes())


@pytest.mark.parametrize(
    "shared",
    [{"task": "barlow_twins"}, {"task": "segmentation", "data__val_fraction": 0.3}],
    ids=lambda shared: shared["task"],
)
def test_workers_are_those_from_before_the_first_step(train, monkeypatch, shared):
    watch = Watch()
    with monkeypatch.context() as patched:
        safeguards = agents.trainer.safeguards
        patched.setattr(agents.trainer, "safeguards", lambda *a: [*safeguards(*a), watch])
        code, folder = train("workers", data__num_workers=1, **shared)
    assert code == 0
    first = watch.at_steps[0]
    assert len(first) == 2  # of training and of validation
    assert len(watch.validating) == 2
    assert all(processes == first for processes in watch.at_steps + watch.validating)
    if shared["task"] == "segmentation":
        assert len(watch.testing[0]) == 1  # training's are gone
        assert all(processes.isdisjoint(first) for processes in watch.testing)
    _, alone = train("alone", data__num_workers=0, **shared)
    assert_same(weights(folder), weights(alone))


def test_there_are_none_where_nothing_is_validated(train, monkeypatch):
    watch = Watch()
    safeguards = agents.trainer.safeguards
    monkeypatch.setattr(agents.trainer, "safeguards", lambda *a: [*safeguards(*a), watch])
    assert train("off", data__num_workers=1, trainer__limit_val_batches=0)[0] == 0
    assert {len(processes) for processes in watch.at_steps} == {1}
