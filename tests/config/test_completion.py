"""What the Tab key offers is what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import names
from config.completion import parser_for, possible_values
from config.hparams import Hparams
from config.parsing import parse
from config.settings_tree import leaves, set_leaf
from config.validation import check_values
from config.yaml_files import parse_yaml

ROOT = Path(__file__).parents[2]


def offered(line: str, tmp_path: Path, cwd: Path = ROOT) -> list[str]:
    """Asks as a shell does."""
    out = tmp_path / "offered"
    asking = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, str(ROOT / "main.py")]
    done = subprocess.run(command, env=os.environ | asking, cwd=cwd, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")
    return out.read_text().splitlines()


@pytest.mark.parametrize("task", names.TASKS)
def test_the_options_are_those_of_the_help_of_the_task(task):
    page = parse(["--help", "--task", task])
    told = set(re.findall(r"^  (--[\w.-]+)", page, re.MULTILINE))
    known = parser_for(["main.py", "--task", task])._option_string_actions
    assert {option for option in known if option.startswith("--")} == told


@pytest.mark.parametrize("leaf", list(leaves(Hparams())), ids=lambda leaf: leaf.path)
def test_every_word_that_is_offered_may_be(leaf):
    words = possible_values(leaf.annotation)
    assert len(words) == len(set(words))
    for word in words:
        value = parse_yaml(word, "a word")
        hparams = Hparams()
        many = isinstance(leaf.default, list) and value is not None
        set_leaf(hparams, leaf.path, [value] if many else value)
        if not word.endswith("/"):  # the name of a network of timm follows
            check_values(hparams, "this test")


def test_values_studies_and_runs_are_offered(tmp_path):
    assert offered("main.py --task li", tmp_path) == ["linear_probe"]
    assert "resnet18" in (found := offered("main.py --backbone.name ", tmp_path))
    assert {"timm/", "auto"} <= set(found)
    assert "table1" in offered("main.py --study ", tmp_path)
    assert offered("main.py --task dino --dino.teacher_t", tmp_path) == ["--dino.teacher_temp"]
    for run in ("runs/one", "runs/other"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "hparams.yaml").touch()
    assert offered("main.py --evaluate o", tmp_path, tmp_path) == ["one", "other"]
