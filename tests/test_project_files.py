"""Files that other programs read: pre-commit, GitHub, whoever cites."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def content(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_pre_commit_checks_what_make_test_checks():
    (repo,) = content(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    hooks = repo["hooks"]
    assert all({"id", "name", "entry", "language"} <= set(hook) for hook in hooks)
    assert {hook["language"] for hook in hooks} == {"system"}
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in hooks]
    assert entries == ["ruff check", "ruff format --check", "mypy ."]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"-m {entry}" in makefile for entry in entries)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_what_make_sets_up_with_uv_has_the_pip_that_advice_names(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text('#!/bin/sh\necho "$@" >> told\nmkdir -p .venv\n')
    uv.chmod(0o755)
    path = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["make", "setup"], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    created = (tmp_path / "told").read_text().splitlines()[0].split()
    assert created[0] == "venv"
    assert "--seed" in created  # without it uv installs no pip


def test_the_citation_is_of_this_version():
    citation = content("CITATION.cff")
    assert {"message", "title", "authors"} <= set(citation)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = [str(citation[key]) for key in ("cff-version", "type", "license", "version")]
    assert found == ["1.2.0", "software", "MIT", version]
    cited = citation["references"]
    assert all({"type", "title", "authors", "year"} <= set(work) for work in cited)
    first = [work["authors"][0]["family-names"] for work in cited]
    studies, methods = first[:2], first[2:]
    assert studies == ["Apavou", "Tronchon"]
    assert methods == ["Zbontar", "Caron", "Bardes", "Bandara", "Balestriero"]
    numbers = [entry["value"] for work in cited for entry in work.get("identifiers", ())]
    assert len({*numbers}) == len(methods)
    assert all(re.fullmatch(r"arXiv:\d{4}\.\d{5}", number) for number in numbers)


def test_a_bug_is_asked_for_what_repeats_it():
    form = content(".github/ISSUE_TEMPLATE/bug.yml")
    assert {"name", "description", "body"} <= set(form)
    text, *fields = form["body"]
    assert "paths" in text["attributes"]["value"]
    assert "no keys" in text["attributes"]["value"]
    assert [field["id"] for field in fields] == [
        "ran",
        "expected",
        "came",
        "environment",
        "hparams",
    ]
    labels = [field["attributes"]["label"] for field in fields]
    assert labels[-2:] == ["environment.json", "hparams.yaml"]
    assert all(field["type"] == "textarea" for field in fields)
    assert "blank_issues_enabled" in content(".github/ISSUE_TEMPLATE/config.yml")
