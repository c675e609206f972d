"""The documentation is built, and what it says of commands, settings and messages is so."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pytorch_lightning import LightningModule
from torch import nn

from agents import Trainer
from agents.commands.study.plan import load_study
from config import names
from config.errors import ConfigError
from config.hparams import Hparams
from config.parsing import parse
from config.settings_tree import leaves, set_leaf
from tests.conftest import PACKAGES, summary, tiny

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What only an example, or a run that there was, can fill in.
OPEN = ("…", "RUN", "NAME", "TASK", "two_layers", "feature_lengths", "my_")


def fenced(page: Path, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def header(file: Path) -> str:
    """Returns the comment that an experiment or a study opens with."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    return "".join(line.lstrip("# ") + "\n" for line in lines)


def command_lines() -> list[list[str]]:
    blocks = "".join(block for page in PAGES for block in fenced(page))
    blocks += "".join(map(header, sorted((ROOT / "config").rglob("*.yaml"))))
    lines = (line.strip() for line in blocks.replace("\\\n", " ").splitlines())
    return [shlex.split(line, comments=True)[2:] for line in lines if line[:14] == "python main.py"]


def test_there_are_commands_of_every_kind():
    words = {word for line in command_lines() for word in line}
    assert {"--study", "--experiment", "--run.resume", "--evaluate", "--help", "--fast"} <= words


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_commands_are_understood(words):
    words = [word.replace("run:NAME", "run:some") for word in words]
    if not any(sign in word for word in words for sign in OPEN):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_exist(page):
    known = {f"--{leaf.path}" for leaf in leaves(Hparams())} | {"--callbacks.NAME.enabled"}
    known |= {"--callbacks.NAME.every_n_epochs", "--segmentation.width"}  # the latter is added, as
    known |= {f"--callbacks.feature_lengths.{name}" for name in ("enabled", "bins")}
    text = page.read_text()
    assert set(re.findall(r"--[a-z_]+\.[\w.]*\w", text)) <= known
    groups = "|".join(name for name in vars(Hparams()) if name != "task")
    mentioned = re.findall(rf"`((?:{groups})\.(?!pth|safetensors)[\w.]*\w)[` ]", text)
    assert {f"--{path}" for path in mentioned} <= known


def messages() -> str:
    """All texts of the program; what is filled in is a zero byte."""
    found = [(ROOT / "Makefile").read_text()]
    for file in [ROOT / "main.py", *(f for p in PACKAGES for f in (ROOT / p).rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "") for part in node.values)
                found.append("".join(p if isinstance(p, str) else "\0" for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_are_explained_exist():
    rows = re.findall(r"^\| (.*?) \| .* \|$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    explained = {
        part.strip()
        for row in rows
        for shown in re.findall(r"`(.*?)`", re.sub(r"\(.*?\)", "", row))
        for part in shown.split("…")
    }
    assert len(explained) > 40
    told = messages()
    assert [each for each in explained if each not in told] == []


def test_files_and_members_that_are_named_exist():
    """In pages, docstrings and comments; a reader makes the files of docs/extending.md."""
    sources = [file for each in PACKAGES for file in sorted((ROOT / each).rglob("*.py"))]
    pages = [page for page in PAGES if page.name != "extending.md"]
    texts = {file: file.read_text() for file in [*sources, *pages, ROOT / "CONTRIBUTING.md"]}
    code = "\n".join(texts[file] for file in sources)
    classes = set(re.findall(r"^class (\w+)", code, re.M))
    members = set(re.findall(r"(?:def |self\.|^ +(?!def ))(\w+)", code, re.M))
    members.update(dir(LightningModule))
    folders = "|".join([*PACKAGES, "benchmarks", "docs", "tests"])
    named = re.compile(rf"(?<![\w/.-])(?:{folders})/[\w/]+\.(?:py|md)\b|`([A-Z]\w+)\.(\w+)`")
    found = [(file, match) for file, text in texts.items() for match in named.finditer(text)]
    assert len(found) > 50
    lost = [
        (file.name, match[0])
        for file, match in found
        if (match[1] in classes and match[2] not in members)
        or (match[1] is None and not (ROOT / match[0]).exists())
    ]
    assert lost == []


def test_the_study_of_the_page_is_one(tmp_path):
    (study,) = fenced(ROOT / "docs" / "studies.md", "yaml")
    (tmp_path / "mine.yaml").write_text(study)
    plan = load_study(str(tmp_path / "mine.yaml"), 1, [], str(tmp_path / "runs"))
    assert len(plan.runs) == 4


def test_the_readme_is_what_a_newcomer_needs():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    pages = {page.name for page in PAGES[1:]}
    assert pages <= set(re.findall(r"\(docs/(\w+\.md)\)", text))


def test_the_glossary_is_sorted_and_leads_on():
    rows = re.findall(
        r"^\| (.*?) \| .*[.!] \| (.*) \|$", (ROOT / "docs/glossary.md").read_text(), re.M
    )
    terms = [term.lower() for term, _ in rows]
    assert len(terms) > 40
    assert terms == sorted(terms)
    assert all(re.fullmatch(r"\[.+?\]\(\w+\.md.*\)", more) for _, more in rows)


def test_the_site_is_built_without_a_warning(tmp_path):
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build
    from mkdocs.exceptions import Abort

    settings = config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    try:
        build(settings)
    except Abort as error:
        pytest.fail(f"make docs: {error}")
    reference, parts = (tmp_path / f"{page}.html" for page in ("settings", "parts"))
    assert all(f'id="{leaf.path}"' in reference.read_text() for leaf in leaves(Hparams()))
    listed = [*names.TASKS, *names.BACKBONES, *names.HEADS, *names.CALLBACKS]
    assert all(f"<code>{name}</code>" in parts.read_text() for name in listed)
    methods = (tmp_path / "methods.html").read_text()
    assert methods.count("<math") > 20
    assert "arithmatex" not in methods
    for page in tmp_path.glob("*.html"):
        assert not re.search(r'(src|<link [^>]*href)="(https?:)?//', page.read_text()), page


def test_the_lines_of_python_train_read_load_and_segment(
    tmp_path, shapes_root, monkeypatch, capsys
):
    code, reading = fenced(ROOT / "docs" / "getting_started.md", "python")
    assert len(code.split("\n\n")[1].splitlines()) + 1 == 5
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 34)).save("photo.jpg")
    first, _, rest = code.partition("Trainer(")
    space: dict[str, Any] = {}
    exec(first, space)
    small = tiny({"task": "segmentation", "data.root": str(shapes_root), "trainer.max_epochs": 1})
    small["callbacks.segmentation_predictions.enabled"] = True
    for path, value in small.items():
        set_leaf(space["hparams"], path, False if value == "false" else value)
    exec("Trainer(" + rest, space)
    assert summary(tmp_path / "runs" / "first")["status"] == "finished"
    assert space["labels"].shape == (34, 50)
    exec(reading, space)
    first = space["first"]
    assert str(first.summary["test/miou"]) in capsys.readouterr().out
    steps, losses = first.curve("train/loss")
    assert steps == list(range(first.summary["steps"]))
    assert losses[-1] == first.summary["train/loss"]
    assert len(space["pictures"]) == 1
    with pytest.raises(ValueError, match="Did you mean train/loss"):
        first.curve("train/los")
    load_run, segment = space["load_run"], space["segment"]
    with pytest.raises(ConfigError, match="There is no run frist"):
        load_run("frist")
    with pytest.raises(OSError, match="nowhere"):
        segment(load_run("runs/first"), "nowhere.jpg")
    with pytest.raises(ValueError, match="labels nothing"):
        segment(nn.Identity(), "photo.jpg")


def wrong_settings() -> list[object]:
    """What a notebook may give instead of settings, every group and every name among it."""
    found: list[object] = [None, {"task": "dino"}, "dino", Hparams]
    for leaf in leaves(Hparams()):
        hparams = Hparams()
        set_leaf(hparams, leaf.path, object())
        found.append(hparams)
    for name, group in vars(Hparams()).items():
        for wrong in ({}, None, "x"):
            hparams = Hparams()
            setattr(hparams, name, wrong)
            found.append(hparams)
        if name != "task":
            setattr(hparams, name, group)
            group.no_such_setting = 1
            found.append(hparams)
    return found


def test_wrong_settings_of_a_notebook_are_config_errors():
    for wrong in wrong_settings():
        with pytest.raises(ConfigError):
            Trainer(wrong)


def test_the_notebook_runs(tmp_path, shapes_root, monkeypatch):
    monkeypatch.chdir(ROOT / "docs" / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = ["--fast", "--data.root", str(shapes_root), "--trainer.accelerator", "cpu"]
    here = {"RUNS": str(tmp_path), "OPTIONS": [*options, "--logger.mode", "disabled"]}
    notebook = json.loads(Path("first_run.ipynb").read_text())
    shown: list[Image.Image] = []
    space: dict[str, object] = {"display": shown.append}  # Jupyter's
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), space)
            space |= here if "parameters" in cell["metadata"].get("tags", ()) else {}
    assert summary(tmp_path / "first-run")["status"] == "finished"
    assert 0 < summary(tmp_path / "first-segmentation")["test/miou"] < 1
    assert [picture.width > 200 for picture in shown] == [True] * 4
    kept = tmp_path / "first-run" / "summary.json"
    kept.write_text(json.dumps(summary(tmp_path / "first-run") | {"status": "interrupted"}))
    exec('run("first-run")', space)
    assert summary(tmp_path / "first-run")["status"] == "finished"


def test_the_notebook_clones_the_project_once(tmp_path, monkeypatch):
    def fake(command: list[str], **options: object) -> None:
        told.append(command[0])
        Path("twinsight").mkdir(exist_ok=True)
        Path("twinsight/main.py").touch()

    told: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("subprocess.run", fake)
    cells = json.loads((ROOT / "docs/notebooks/first_run.ipynb").read_text())["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    with pytest.raises(AssertionError, match="give REPOSITORY"):
        exec(code, {})
    for _ in range(2):  # a cell is run again
        exec(code.replace('REPOSITORY = ""', 'REPOSITORY = "https://…"'), {})
        assert Path.cwd() == tmp_path / "twinsight"
    assert told == ["git", sys.executable]
