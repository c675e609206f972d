"""A sweep's settings are settings of ours, and all of its values are possible."""

from itertools import product
from pathlib import Path

import pytest
import yaml

from config.parsing import Command, parse

SWEEPS = sorted((Path(__file__).parents[2] / "config" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_run_of_a_sweep_can_be_parsed(file):
    content = yaml.safe_load(file.read_text())
    fixed = [f"--{name}={p['value']}" for name, p in content["parameters"].items() if "value" in p]
    varied = {name: p["values"] for name, p in content["parameters"].items() if "values" in p}
    runs = [
        [f"--{name}={value}" for name, value in zip(varied, values, strict=True)]
        for values in product(*varied.values())
    ]
    assert f"{len(runs)} runs" in file.read_text()
    for run in runs:
        assert isinstance(parse([*fixed, *run]), Command)
