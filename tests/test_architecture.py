"""Imports point one way: main → agents → datamodules, models, callbacks → utils; config apart."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import agents
from config import names

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "agents": {"agents", "callbacks", "config", "datamodules", "models", "utils"},
    "callbacks": {"callbacks", "datamodules", "models", "utils"},
    # Nested dicts become flat in utils/nested.py.
    "config": {"config", "utils"},
    "datamodules": {"datamodules", "utils"},
    "models": {"models", "utils"},
    "utils": {"utils"},
}
FOLDERS = set(ALLOWED)
FILES = [file for folder in ALLOWED for file in sorted((ROOT / folder).rglob("*.py"))]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tables() -> dict[str, set[str]]:
    """Modules that a table of config/names.py leads to, by the table's name."""
    found = {}
    for name, table in vars(names).items():
        if isinstance(table, dict) and all(":" in str(each) for each in table.values()):
            targets = [each if isinstance(each, str) else each.target for each in table.values()]
            found[name] = {target.partition(":")[0] for target in targets}
    return found


def dependencies(file: Path) -> set[str]:
    """Modules of ours that a file imports, those it looks up in a table of names included."""
    known, found = {module_of(each) for each in FILES}, set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "names":
            # Configuration names parts; only what loads them depends on them.
            found |= set() if file.parent.name == "config" else tables().get(node.attr, set())
    return found & known - {module_of(file)}


def test_no_import_leads_in_a_circle():
    graph = {module_of(file): dependencies(file) for file in FILES}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_only_the_trainer_and_commands_assemble():
    users = {module_of(file) for file in FILES if "agents.build" in dependencies(file)}
    commands = {f"agents.commands.{name}" for name in ("evaluate", "trained", "study.room")}
    assert users <= {"agents.trainer", *commands}


def test_only_main_agents_and_config_know_hparams():
    users = {module_of(file) for file in FILES if "config.hparams" in dependencies(file)}
    assert {user.partition(".")[0] for user in users} == {"agents", "config"}


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


def test_nobody_calls_wandb_but_its_logger():
    users = {
        file.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        if "wandb" in imported(file)
    }
    assert users == {"agents/wandb_run.py", "agents/wandb_start.py"}


def test_the_command_line_answers_without_importing_torch():
    code = (
        "import sys; from main import main; "
        "codes = main(['--help']), main(['--data.batch_sise', '3']), "
        "main(['--study', 'table1', '--print-commands']), main(['--compare', 'missing', 'other']); "
        "assert codes == (0, 2, 0, 2), codes; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--data.batch_size" in done.stdout
    assert "Did you mean --data.batch_size?" in done.stderr
    assert "--run.name" in done.stdout.splitlines()[-1]
    assert "There is no run missing" in done.stderr


def test_all_that_a_notebook_needs_can_be_imported():
    assert {name for name in agents.__all__ if hasattr(agents, name)} == set(agents.__all__)
    assert set(agents.__all__) <= set(dir(agents))  # which an editor offers
    assert not hasattr(agents, "trianer")
