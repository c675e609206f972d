"""Every named experiment can be built: its backbone, head and data fit each other."""

import pytest

from agents.build import build_agent
from config.lookup import known_experiments
from config.parsing import Command, parse
from config.resolve import resolve


# A probe reads its images when it is built.
@pytest.mark.parametrize("name", [n for n in known_experiments() if n != "cifar10-probe"])
def test_an_experiment_can_be_built(name):
    command = parse(["--experiment", name])
    assert isinstance(command, Command)
    agent = build_agent(resolve(command.hparams), load=False)
    assert sum(p.numel() for p in agent.parameters()) > 0
