"""Imports point one way: main → agents → datamodules, models, callbacks → utils; config apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "agents": {"agents", "callbacks", "config", "datamodules", "models", "utils"},
    "callbacks": {"callbacks", "models", "utils"},
    # Nested dicts become flat in utils/nested.py.
    "config": {"config", "utils"},
    "datamodules": {"datamodules", "utils"},
    "models": {"models", "utils"},
    "utils": {"utils"},
}
FOLDERS = set(ALLOWED)


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_imports_point_one_way(folder):
    for file in (ROOT / folder).rglob("*.py"):
        wrong = (imported(file) & FOLDERS) - ALLOWED[folder]
        assert not wrong, f"{file} imports {wrong}"


def test_models_know_no_lightning_and_config_no_torch():
    for folder, forbidden in (("models", "pytorch_lightning"), ("config", "torch")):
        for file in (ROOT / folder).rglob("*.py"):
            assert forbidden not in imported(file), file


def test_nobody_calls_wandb_but_the_loggers():
    users = {
        file.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        if "wandb" in imported(file)
    }
    assert users == {"agents/loggers.py"}


def test_the_command_line_answers_without_importing_torch():
    code = (
        "import sys; from main import main; "
        "codes = main(['--help']), main(['--data.batch_sise', '3']); "
        "assert codes == (0, 2), codes; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--data.batch_size" in done.stdout
    assert "Did you mean data.batch_size?" in done.stderr
