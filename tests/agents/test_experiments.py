"""Every named experiment can be built: its backbone, head and data fit each other."""

import pytest

from agents.build import build_agent
from agents.sources import build_source
from config.length import resolve_for_data
from config.lookup import known_experiments
from config.parsing import Command, parse
from config.resolve import resolve


# A probe reads its images when it is built.
@pytest.mark.parametrize("name", [n for n in known_experiments() if n != "cifar10-probe"])
def test_an_experiment_can_be_built(name):
    command = parse(["--experiment", name])
    assert isinstance(command, Command)
    hparams = resolve_for_data(resolve(command.hparams), 1000, on_gpu=True)
    agent = build_agent(hparams, build_source(hparams), loaded=False)
    assert sum(p.numel() for p in agent.parameters()) > 0
