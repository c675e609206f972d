"""Study files: rows become runs in an order that works, and mistakes are named."""

from pathlib import Path

import pytest
import yaml

from agents.commands.study.plan import load_study
from agents.commands.study.runner import check_settings
from config.errors import ConfigError
from config.lookup import known_experiments, read_experiment
from config.parsing import Command, parse
from utils.nested import merged


def study(tmp_path: Path, content: dict, *words: str, seeds: int | None = None):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_study(str(file), seeds, words, str(tmp_path / "runs"))


def experiment(tmp_path: Path, name: str, **settings: object) -> str:
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


OF_THE_STUDY = {
    row.experiment for name in ("table1", "table2") for row in load_study(name, 1, [], "").rows
}
SEGMENT = {"task": "segmentation", "backbone.freeze": True}


@pytest.mark.parametrize("name", known_experiments("studies"))
def test_every_study_of_the_project_is_sound(name, monkeypatch):
    monkeypatch.setenv("VIT_SMALL_16", "file.pth")
    words = ["--backbone.weights", "dino"] if name.startswith("attention_") else []
    found = load_study(name, 2, words, "runs")
    names = [run.name for run in found.runs]
    assert len(set(names)) == len(names)
    for position, run in enumerate(found.runs):
        assert all(names.index(needed) < position for needed in run.needs)
        if run.seed == 0:
            assert isinstance(parse(run.words), Command)
    assert found.metrics
    assert found.title
    text = (Path("config/studies") / f"{name}.yaml").read_text()
    assert f"--study {name}" in text.partition("\ntitle")[0]


@pytest.mark.parametrize("name", known_experiments())
def test_every_experiment_opens_with_its_command(name):
    head = []
    for line in (Path("config/experiments") / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    text = "\n".join(head)
    assert f"python main.py --experiment {name} " in text
    if name in OF_THE_STUDY:
        for word in ("Published:", "Inferred:", "Expected on a 10 GB card:"):
            assert word in text


def test_published_numbers_are_those_of_the_experiments():
    for name in ("table1", "table2"):
        for row in load_study(name, 1, [], "runs").rows:
            for number in row.published.values():
                file = Path("config/experiments") / f"{row.experiment}.yaml"
                assert f"{number} mIoU" in file.read_text(), row.name


def test_what_is_needed_comes_first_and_is_of_the_same_seed(tmp_path):
    found = study(
        tmp_path,
        {
            "rows": [
                {"name": "b", "settings": {**SEGMENT, "backbone.weights": "run:a"}},
                {"name": "a", "settings": {"trainer.max_epochs": 1}, "shown": False},
            ]
        },
        seeds=2,
    )
    assert [run.name for run in found.runs] == ["a-s0", "b-s0", "a-s1", "b-s1"]
    last = found.runs[-1]
    assert last.needs == ("a-s1",)
    assert "run:a-s1" in last.words
    assert [row.name for row in found.rows if row.shown] == ["b"]


def test_experiments_that_runs_start_from_are_added(tmp_path):
    found = study(tmp_path, {"rows": ["quiet-darkness"]})
    assert [run.name for run in found.runs] == ["rare-valley-s0", "quiet-darkness-s0"]
    assert [row.shown for row in found.rows] == [True, False]
    # Other weights for all make it unnecessary.
    found = study(tmp_path, {"rows": ["quiet-darkness"]}, "--backbone.weights", "none")
    assert [run.name for run in found.runs] == ["quiet-darkness-s0"]


def test_precedence_experiment_study_row_command_line(tmp_path):
    mine = experiment(tmp_path, "mine-e", data={"batch_size": 16}, trainer={"max_epochs": 5})
    content = {
        "settings": {"data.batch_size": 32, "optim.lr": 0.1, "segmentation.head": "linear"},
        "rows": [
            {"experiment": mine},
            {"name": "other", "settings": {"data.batch_size": 64}},
            {"name": "third", "settings": SEGMENT},
        ],
    }
    runs = {run.row: run for run in study(tmp_path, content).runs}
    assert runs["mine-e"].settings["data.batch_size"] == 32
    assert runs["mine-e"].settings["trainer.max_epochs"] == 5
    assert runs["other"].settings["data.batch_size"] == 64
    # What a run does not read is not given to it.
    assert "--segmentation.head" not in runs["mine-e"].words
    assert runs["third"].settings["segmentation.head"] == "linear"
    runs = {run.row: run for run in study(tmp_path, content, "--data.batch_size", "8").runs}
    assert {run.settings["data.batch_size"] for run in runs.values()} == {8}


def test_an_override_may_need_another(tmp_path):
    content = {"rows": [{"name": "a", "settings": SEGMENT}]}
    words = ("--data.fixed_scales", "1.0", "2.0", "--data.views", "fixed")
    (run,) = study(tmp_path, content, *words).runs
    assert run.settings["data.fixed_scales"] == [1.0, 2.0]


@pytest.mark.parametrize("left", ["", "a-s0: 3\n", "a-s0:\n", "b-s0: {task: dino}\n"])
def test_lost_settings_of_a_started_run_are_not_written_anew(tmp_path, left):
    found = study(tmp_path, {"rows": [{"name": "a", "settings": {}}]})
    check_settings(found)
    noted = found.folder / "settings.yaml"
    before = noted.read_text()
    (name,) = (run.name for run in found.runs)
    (found.folder / name).mkdir()
    check_settings(found)
    noted.write_text(left.replace("a-s0", name))
    with pytest.raises(ConfigError, match=rf"settings\.yaml lacks .* {name}, which"):
        check_settings(found)
    noted.unlink()
    check_settings(found)
    assert noted.read_text() == before


def test_every_row_is_parsed_once(monkeypatch):
    parsed = []
    monkeypatch.setattr(
        "agents.commands.study.plan.parse", lambda words: parsed.append(words) or parse(words)
    )
    found = load_study("table2", 3, ["--trainer.max_steps", "5"], "runs")
    assert len(parsed) == len({run.row for run in found.runs}) > 8


def test_environment_variables(tmp_path, monkeypatch):
    content = {"rows": [{"name": "a", "settings": {"data.root": "${SOME_FOLDER}/x"}}]}
    with pytest.raises(ConfigError, match="needs the environment variable SOME_FOLDER"):
        study(tmp_path, content)
    monkeypatch.setenv("SOME_FOLDER", "/here")
    assert study(tmp_path, content).runs[0].settings["data.root"] == "/here/x"


def test_where_a_run_is_computed_is_not_what_it_computes(tmp_path):
    content = {"rows": [{"name": "a", "settings": {}}]}
    (one,) = study(tmp_path, content).runs
    (two,) = study(tmp_path, content, "--data.num_workers", "3", "--data.root", "/x").runs
    (three,) = study(tmp_path, content, "--trainer.max_epochs", "3").runs
    assert one.identity == two.identity != three.identity
    assert two.machine_words == ("--data.num_workers", "3", "--data.root", "/x")


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ({"rows": ["quiet-darknes"]}, (), "Did you mean quiet-darkness"),
        (
            {"rows": [{"name": "a", "settings": {"optim": {"lr": 1.0}, "optim.lr": 0.1}}]},
            (),
            r"row a: optim\.lr stands there twice",
        ),
        (
            {"settings": {"optim": {"lr": 1.0}, "optim.lr": 0.1}, "rows": [{"name": "a"}]},
            (),
            r"optim\.lr stands there twice",
        ),
        ({"row": []}, (), "Did you mean rows"),
        ({"rows": []}, (), "needs `rows:`"),
        ({"rows": [{"name": "a", "setings": {}}]}, (), "Did you mean settings"),
        ({"rows": [{"name": "a", "settings": {"data.batchsize": 3}}]}, (), "data.batch_size"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, (), "two rows are called a"),
        ({"rows": [{"name": "a b"}]}, (), "letters, digits"),
        ({"rows": [{"label": "a"}]}, (), "needs `experiment:` or `name:`"),
        (
            {
                "rows": [
                    {"name": "a", "settings": {**SEGMENT, "backbone.weights": "run:leafywater"}}
                ]
            },
            (),
            "backbone.weights run:leafywater.*Did you mean leafy-water",
        ),
        (
            {
                "rows": [
                    {"name": "a", "settings": {**SEGMENT, "backbone.weights": "run:b"}},
                    {"name": "b", "settings": {**SEGMENT, "backbone.weights": "run:a"}},
                ]
            },
            (),
            "needs (a needs b|b needs a).*can never run",
        ),
        ({"rows": [{"name": "a"}]}, ("--run.seed", "3"), "names and seeds its runs itself"),
        ({"rows": [{"name": "a"}]}, ("--segmentation.head", "linear"), "no effect on any run"),
        ({"rows": [{"name": "a"}]}, ("--data.batchsize", "3"), "Did you mean data.batch_size"),
        ({"rows": [{"name": "a"}]}, ("oops",), "Unknown word oops"),
        ({"rows": [{"name": "a", "published": 0.5}]}, (), "needs `metrics:`"),
        ({"rows": [{"name": "a"}], "seeds": 0}, (), "seeds 0: expected 1 to 1000"),
        ({"rows": [{"name": "a"}], "seeds": 1001}, (), "seeds 1001: expected 1 to 1000"),
        ({"rows": [{"name": "a"}], "figures": [{"picture": "x"}]}, (), "expected one of matrices"),
        (
            {"rows": [{"name": "abc"}], "figures": [{"picture": "matrices", "rows": ["abd"]}]},
            (),
            "Did you mean abc",
        ),
        (
            {"rows": [{"name": "abc"}], "figures": [{"picture": "matrices", "rows": "abc"}]},
            (),
            "expected a list or `name: value` lines",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, content, words, message):
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, content, *words)


def test_experiments_extend_each_other(tmp_path):
    below = experiment(tmp_path, "below", data={"batch_size": 16, "image_size": 96})
    above = experiment(tmp_path, "above", extends=below, data={"batch_size": 8})
    assert read_experiment(above) == {"data": {"batch_size": 8, "image_size": 96}}
    experiment(tmp_path, "below", extends=above)
    with pytest.raises(ConfigError, match="above extends below extends above"):
        read_experiment(above)
    assert merged({"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}) == {"a": {"b": {"c": 1, "d": 2}}}


def test_the_command_line_of_a_study():
    command = parse(
        ["--study", "quick", "--seeds", "3", "--run.dir", "x", "--data.batch_size", "8"]
    )
    assert isinstance(command, Command)
    assert (command.study, command.seeds, command.hparams.run.dir) == ("quick", 3, "x")
    assert command.overrides == ["--data.batch_size", "8"]
    for words, message in (
        (["--study", "quick", "--experiment", "leafy-water"], "cannot be combined"),
        (["--study", "quick", "--seeds", "0"], "at least 1"),
        (["--study", "quick", "--evaluate", "x"], "cannot be combined"),
        (["--study", "quick", "--seeds", "many"], "invalid int"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(words)
    with pytest.raises(ConfigError, match=r"There is no study quik\. Did you mean quick"):
        load_study("quik", None, [], "runs")
