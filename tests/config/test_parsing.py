import os
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
from yaml import safe_load

from config import names
from config.advice import advice
from config.effective import active_settings
from config.errors import ConfigError
from config.hparams import Hparams
from config.length import resolve_for_data
from config.lookup import CONFIG_DIR, find_run, newest_unfinished, read_experiment
from config.parsing import Command, parse
from config.resolve import choose_names, resolve
from config.rules import get_leaf, possible_on
from config.settings_tree import leaves, update
from config.validation import check
from config.yaml_files import read_yaml, write_yaml

EXPERIMENTS = sorted((CONFIG_DIR / "experiments").glob("*.yaml"))


def hparams(*argv: str) -> Hparams:
    command = parse(argv)
    assert isinstance(command, Command)
    return command.hparams


def test_nothing_given_means_the_defaults():
    assert hparams() == choose_names(Hparams())


def test_command_line_wins_over_experiment_wins_over_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {batch_size: 64, image_size: 96}\noptim: {lr: 1e-3}\n")
    settings = hparams("--experiment", str(file), "--data.image_size", "32")
    assert (settings.data.batch_size, settings.data.image_size) == (64, 32)
    assert settings.optim.lr == 1e-3  # YAML itself reads this spelling as a string
    assert settings.data.name == Hparams().data.name


@pytest.mark.parametrize("following", [[], ["--run.seed", "1"]])
def test_an_option_without_its_value_is_no_null(following):
    """`--data.root $UNSET` would train on other images."""
    for option in ("--data.root", "--trainer.max_steps", "--data.blur"):
        with pytest.raises(ConfigError, match=rf"^{option}: expected a value, or null"):
            parse([option, *following])


@pytest.mark.parametrize("spelling", [("--backbone.depth", "null"), ("--backbone.depth=null",)])
def test_null_on_the_command_line(spelling):
    assert hparams(*spelling).backbone.depth is None


def test_of_null_and_a_value_the_last_counts():
    words = ("--trainer.chunk_size", "null"), ("--trainer.chunk_size=8",)
    assert hparams(*words[0], *words[1]).trainer.chunk_size == 8
    assert hparams(*words[1], *words[0]).trainer.chunk_size is None  # and no longer auto


def test_an_experiment_may_name_variables_of_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "data: {root: '${SOME_FOLDER}/x', name: voc}\nbackbone.weights: ${SOME_FILE}\n"
        "data.batch_size: ${SOME_NUMBER}\noptim.lr: ${SOME_RATE}\n"
        "run.name: ${SOME_NUMBER}\n"
    )
    monkeypatch.setenv("SOME_FOLDER", "/he: re")
    monkeypatch.setenv("SOME_FILE", "dino")
    monkeypatch.setenv("SOME_NUMBER", "64")
    with pytest.raises(ConfigError, match=r"mine\.yaml needs the environment variable SOME_RATE:"):
        parse(["--experiment", str(file)])
    monkeypatch.setenv("SOME_RATE", "1e-3")
    hparams = parse(["--experiment", str(file)]).hparams
    assert (hparams.data.root, hparams.backbone.weights) == ("/he: re/x", "dino")
    assert (hparams.data.batch_size, hparams.optim.lr, hparams.run.name) == (64, 1e-3, "64")


def test_numbers_are_numbers_whatever_was_imported_before():
    # `typing` keeps one order of a union for the whole process: the one that was asked for first.
    code = (
        "from typing import Optional, Union; "
        "Optional[Union[str, int]], Union[str, int], Union[str, float]; "
        "from config.parsing import parse; "
        "settings = parse(['--trainer.chunk_size', '32', '--optim.lr', '1']).hparams; "
        "assert (settings.trainer.chunk_size, settings.optim.lr) == (32, 1), settings"
    )
    root = CONFIG_DIR.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("--barlow_twins.crop_scale=[0.25, 1]", "barlow_twins.crop_scale", [0.25, 1.0]),
        ("--callbacks.attention_maps.blocks=[-1,-2]", "callbacks.attention_maps.blocks", [-1, -2]),
        (
            "--callbacks.effective_receptive_field.layers=['blocks.0', \"blocks.1\"]",
            "callbacks.effective_receptive_field.layers",
            ["blocks.0", "blocks.1"],
        ),
    ],
)
def test_a_list_in_one_word_as_sweeps_give_it(word, path, value):
    assert get_leaf(parse([word]).hparams, path) == value


def test_lists_and_flags():
    settings = hparams(
        "--callbacks.attention_maps.blocks", "0", "5", "--callbacks.views.enabled", "false"
    )
    assert settings.callbacks.attention_maps.blocks == [0, 5]
    assert settings.callbacks.views.enabled is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.batchsize", "3"], r"Did you mean --data\.batch_size\?"),
        (["--batch_size", "3"], "Did you mean --data.batch_size"),
        (["data.batch_size", "3"], r"option data\.batch_size\. Did you mean --data\."),
        (["--studdy", "quick"], r"Did you mean --study\?"),
        (["--print_commands"], "Did you mean --print-commands"),
        (["--data.batch", "3"], "Unknown option --data.batch"),
        (["--data.batch_size", "many"], "--data.batch_size"),
        (["--data.batch_size", "1"], "expected at least 2"),
        (["--data.batch_size", "2.5"], "2.5: expected a whole number or auto"),
        (["--trainer.chunk_size", "2.5"], "expected a whole number or auto or null"),
        (["--optim.lr", "fast"], "expected a number or auto"),
        (["--barlow_twins.crop_scale", "0.25,1"], "values are separated by spaces"),
        (["--barlow_twins.crop_scale", "[0.25, 1]"], "values are separated by spaces"),
        (["--barlow_twins.crop_scale", "0.25 1"], "values are separated by spaces"),
        (["--trainer.devices", "0,1"], r"invalid int value: '0,1'\. --help"),
        (["--trainer.devices=[0, 1]"], r"invalid int value: '\[0, 1\]'\. --help"),
        (["--optim.lr=-1"], "expected at least 0"),
        (["--backbone.name", "vit_smal"], "timm/NAME, .*Did you mean vit_small"),
        (["--data.name", "VOC"], "Did you mean voc"),
        (["--logger.mode", "later"], "--logger.mode"),
        (["--task", "sleep"], "expected one of barlow_twins"),
        (
            ["--backbone.name", "resnet18", "--backbone.pool", "mean"],
            "backbone.name vit_demo",
        ),
        (["--data.download", "true"], "without --data.name voc or cifar10"),
        (["--optim.momentum", "0.5"], "without --optim.name lars or sgd"),
        (["--backbone.unfreeze_last", "2"], "without --backbone.freeze"),
        (
            ["--optim.schedule", "constant", "--optim.final_lr_ratio", "0.5"],
            "schedule cosine",
        ),
        (["--trainer.chunk_size", "256", "--data.batch_size", "64"], "exceeds --data.batch_size"),
        (["--trainer.devices", "0"], "expected at least 1"),
        (["--experiment", "nothing"], "no experiment nothing"),
        (["--run.resume", "nowhere"], r"no run nowhere in .*\(--run\.dir\)"),
        (["--export", "nowhere", "--evaluate", "nowhere"], "cannot be combined"),
        (["--seeds", "2"], "go with --study"),
        (
            [
                *("--barlow_twins.loss", "vicreg", "--barlow_twins.invariance_weight", "0"),
                *("--barlow_twins.variance_weight", "0", "--barlow_twins.covariance_weight", "0"),
            ],
            "are all 0: nothing is trained",
        ),
        (["stray"], "Unknown option stray"),
        (["--callbacks.views.noenabled", "true"], r"^Negative flags .*\. --help lists all options"),
    ],
)
def test_bad_settings_are_named(argv, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        parse([*argv, "--run.dir", str(tmp_path)])


@pytest.mark.parametrize(
    "option",
    ["--experiment", "--study", "--evaluate", "--predict", "--compare", "--export", "--run.resume"],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_name_starts_no_training(option, empty):
    for argv in ([option, empty], [f"{option}={empty}"]):
        with pytest.raises(ConfigError, match=f"{option}.*expected a name, not an empty text"):
            parse(argv)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"batch_sizes": 3}}, "no setting data.batch_sizes. Did you mean data.batch_size"),
        ({"data": 3}, "is a group"),
        ({"run": {"seed": 1.5}}, "--run.seed 1.5: expected a whole number"),
        ({"data": {"download": "maybe"}}, "expected true or false"),
        ({"callbacks": {"attention_maps": {"blocks": ["a"]}}}, "list of whole numbers"),
        ({"data": {"split": "test"}}, "expected train or trainaug or all_minus_val or all"),
        ({"backbone": {"output_stride": 12}}, "expected 8 or 16 or 32"),
    ],
)
def test_yaml_is_checked_as_strictly(settings, message):
    with pytest.raises(ConfigError, match=message):
        check(update(Hparams(), settings, "file.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_round_trips_and_resolves(file, tmp_path):
    settings = check(update(Hparams(), read_experiment(str(file)), str(file)))
    write_yaml(asdict(settings), tmp_path / "full.yaml")
    assert update(Hparams(), read_yaml(tmp_path / "full.yaml"), "full") == settings
    resolved = resolve_for_data(resolve(settings), 1000, on_gpu=True)
    write_yaml(active_settings(resolved), tmp_path / "active.yaml")
    again = check(update(Hparams(), read_yaml(tmp_path / "active.yaml"), "active"))
    assert active_settings(again) == active_settings(resolved)
    # Nothing is left to choose: it repeats the run, on whatever machine.
    elsewhere = resolve_for_data(resolve(again), 777, on_gpu=False)
    assert active_settings(elsewhere) == active_settings(resolved)


def test_resolve_scales_the_learning_rate_and_changes_nothing_given():
    for name, expected in (("adamw", 5e-4), ("lars", 0.05), ("sgd", 0.0075)):
        words = ["--data.name", "cifar10", "--optim.name", name, "--data.batch_size", "64"]
        settings = hparams(*words)
        assert resolve_for_data(resolve(settings), 512, False).optim.lr == pytest.approx(expected)
        words[-1] = "16"
        settings = hparams(*words, "--trainer.accumulate", "4")
        assert resolve_for_data(resolve(settings), 512, False).optim.lr == pytest.approx(expected)
        settings = hparams(*words, "--trainer.accumulate", "4", "--backbone.weights", "pretrained")
        slow = resolve_for_data(resolve(settings), 512, False).optim.lr
        assert slow == pytest.approx(0.03 * expected)
    given = hparams("--optim.lr", "0.5", "--optim.weight_decay", "0")
    assert resolve_for_data(resolve(given), 512, False).optim.lr == 0.5
    assert resolve(given).optim.weight_decay == 0


@pytest.mark.parametrize(
    ("length", "warmup"),  # in epochs of 10 steps
    [
        (("max_epochs", "400"), 10.0),
        (("max_epochs", "100"), 5.0),
        (("max_epochs", "26"), 1.0),
        (("max_epochs", "3"), 0.6),
        (("max_steps", "5"), 0.1),
    ],
)
def test_a_short_run_is_not_all_warm_up(length, warmup):
    settings = hparams(f"--trainer.{length[0]}", length[1], "--data.batch_size", "64")
    assert resolve_for_data(resolve(settings), 640, False).optim.warmup_epochs == warmup


@pytest.mark.parametrize("path", ["optim.lr", "optim.weight_decay"])
def test_an_optimizer_of_ones_own_needs_its_numbers(path):
    given = {"optim.lr": "0.1", "optim.weight_decay": "0"} | {path: "auto"}
    settings = hparams(*(word for key, value in given.items() for word in (f"--{key}", value)))
    settings.optim.name = "mine"
    with pytest.raises(ConfigError, match=f"--{path} auto: none is known for --optim.name mine"):
        resolve_for_data(resolve(settings), 512, False)


def test_help_names_choices_and_defaults():
    page, other = parse(["--help"]), parse(["--help", "--task", "segmentation"])
    assert isinstance(page, str)
    assert isinstance(other, str)
    assert "{shapes,voc,coco_stuff,mask_folder,cifar10,image_folder}" in page
    assert "--segmentation.head" not in page
    assert "--barlow_twins.lambd" not in other
    assert "--callbacks.cross_correlation.enabled" not in other
    for task in names.TASKS:
        page += parse(["--help", "--task", task])
    for group, settings in asdict(Hparams()).items():
        if isinstance(settings, dict):
            assert f"--{group}.{next(iter(settings))}" in page


def test_help_writes_defaults_as_the_command_line_takes_them():
    option = re.compile(r"^  --([a-z_.]+) (?:(?!^  --).)*?\(default:\s(.*?)\)", re.M | re.S)
    pages = [str(parse(["--help", "--task", task])) for task in names.TASKS]
    found = {path: words.split() for page in pages for path, words in option.findall(page)}
    for leaf in leaves(Hparams()):
        if leaf.value == []:
            assert found.get(leaf.path, ["empty"]) == ["empty"], leaf.path
        elif leaf.path in found:
            values = leaf.value if isinstance(leaf.value, list) else [leaf.value]
            pairs = zip(found[leaf.path], values, strict=True)
            read = [type(v)(w) if type(v) in (float, str) else safe_load(w) for w, v in pairs]
            assert read == values, leaf.path
    assert len(found) > 100


def test_every_setting_has_advice_and_help_shows_it():
    pages = [parse(["--help", "--task", task]) for task in names.TASKS]
    shown = "".join("".join(str(page).split()) for page in pages)
    for leaf in leaves(Hparams()):
        assert advice(leaf), leaf.path
        assert "".join(advice(leaf).split()) in shown, leaf.path


@pytest.mark.parametrize("words", [["--help"], ["--study", "table1", "--print-commands"]])
def test_a_reader_may_stop_early(words):
    command = [sys.executable, "main.py", *words]
    asked = subprocess.Popen(
        command, cwd=CONFIG_DIR.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert asked.stdout is not None
    assert asked.stderr is not None
    asked.stdout.close()  # as `| head` does, only sooner
    assert asked.stderr.read() == b""
    assert asked.wait() == 0


def test_what_prints_outlives_its_terminal():
    reader, terminal = os.openpty()
    command = [sys.executable, "main.py", "--help"]
    asked = subprocess.Popen(
        command, cwd=CONFIG_DIR.parent, stdout=terminal, stderr=subprocess.PIPE
    )
    os.close(terminal)
    os.close(reader)  # as by logging out, only sooner
    assert asked.communicate() == (None, b"")
    assert asked.returncode == 0


def test_python_need_not_have_what_simple_parsing_takes_from_it():
    code = "import dataclasses; vars(dataclasses).pop('_MISSING_TYPE', None)  # as in Python 3.15\n"
    code += "from main import main; raise SystemExit(main(['--help']))"
    command = [sys.executable, "-c", code]
    asked = subprocess.run(command, cwd=CONFIG_DIR.parent, capture_output=True, text=True)
    assert asked.stdout.startswith("usage: "), asked.stderr


def test_how_a_notebook_shows_pictures_need_not_be_known_here(tmp_path):
    runs = [tmp_path / name for name in ("a", "b")]
    for run in runs:
        run.mkdir()
        (run / "hparams.yaml").write_text("task: dino\n")
    command = [sys.executable, "main.py", "--compare", *map(str, runs), "--run.dir", str(tmp_path)]
    inherited = os.environ | {"MPLBACKEND": "a backend of another environment"}
    asked = subprocess.run(
        command, cwd=CONFIG_DIR.parent, env=inherited, capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize("task", names.TASKS)
def test_help_begins_with_what_matters(task):
    page = parse(["--help", "--task", task])
    assert isinstance(page, str)
    usage, _, _ = page.partition("\n\n")
    assert len(usage.splitlines()) <= 5
    settings = {line.split()[0] for line in page.splitlines() if re.match(r"  -+\w+\.\w", line)}
    assert settings == {
        f"--{leaf.path}"
        for leaf in leaves(Hparams())
        if "." in leaf.path and possible_on(Hparams, leaf.path, task)
    }


@pytest.mark.parametrize(
    "argv",
    [
        ["--data.batch_size"],
        ["--callbacks.views.enabled", "maybe"],
        ["--task"],
        ["--compare"],
        ["--study", "quick", "--seeds", "x"],
    ],
)
def test_a_line_that_is_not_understood_is_one_sentence(argv, capsys):
    with pytest.raises(ConfigError, match=r"^[^\n]*--help lists all options\.$") as error:
        parse(argv)
    assert ".no" not in str(error.value)
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_version_is_said_without_importing_torch():
    said = parse(["--version"])
    assert isinstance(said, str)
    for package in ("torch", "pytorch-lightning"):
        assert f"{package} {version(package)}" in said
    project = tomllib.loads((CONFIG_DIR.parent / "pyproject.toml").read_text())["project"]
    assert said.startswith(f"twinsight {project['version']}, Python 3.")


def test_only_what_the_command_line_takes_the_effect_of_gives_way_to_it(tmp_path):
    file = tmp_path / "mine.yaml"
    words = ["--experiment", str(file), "--optim.name", "adamw"]
    reason = "without --optim.name lars or sgd."
    file.write_text("optim: {name: sgd, momentum: 0.5}\n")
    command = parse(words)
    assert isinstance(command, Command)
    assert command.notes == [f"optim.momentum 0.5 no longer counts {reason}"]
    with pytest.raises(ConfigError, match=f"momentum 0.5 has no effect {reason}"):
        parse([*words, "--optim.momentum", "0.5"])
    file.write_text("optim: {momentum: 0.5}\n")
    with pytest.raises(ConfigError, match=f"momentum 0.5 has no effect {reason}"):
        parse(words)


def test_null_may_be_given_where_it_does_nothing():
    words = ["--experiment", "devout-plant", "--backbone.name", "resnet50"]
    command = parse(words)
    reason = "without --backbone.name vit_demo or"
    assert command.notes[0].startswith(f"backbone.patch_size 8 no longer counts {reason}")
    command = parse([*words, "--backbone.patch_size", "null"])
    assert isinstance(command, Command)
    assert "patch_size" not in active_settings(command.hparams)["backbone"]


@pytest.mark.parametrize("action", [["--evaluate"], ["--export"], ["--run.resume"]])
def test_a_run_keeps_its_task(tmp_path, action):
    (tmp_path / "hparams.yaml").write_text("task: segmentation\n")
    words = [*action, str(tmp_path), "--task"]
    assert parse([*words, "segmentation"]).hparams.task == "segmentation"
    with pytest.raises(ConfigError, match=f"^--task dino has no effect with {action[0]}: "):
        parse([*words, "dino"])


@pytest.mark.parametrize(
    "left", ["hparams.yaml", "checkpoints/last.ckpt", "checkpoints/previous.ckpt"]
)
def test_a_run_is_found_by_any_file_it_goes_on_from(tmp_path, monkeypatch, left):
    file = tmp_path / "runs" / "mine" / left
    file.parent.mkdir(parents=True)
    file.write_text("task: dino\n")
    run = tmp_path / "runs" / "mine"
    assert find_run("mine", str(tmp_path / "runs")) == run
    assert newest_unfinished(str(tmp_path / "runs")) == run
    (run / "summary.json").write_text('{"status": "finished"}')
    with pytest.raises(ConfigError, match="no unfinished run"):
        newest_unfinished(str(tmp_path / "runs"))
    monkeypatch.chdir(run)
    assert find_run(".", "runs").name == "mine"


def test_the_newest_run_that_has_something_left_to_do_is_gone_on_with(tmp_path):
    newest = tmp_path
    for age, (name, status, counts) in enumerate(
        [
            ("last.ckpt", "interrupted", True),
            ("previous.ckpt", "failed", True),
            ("last.ckpt", "finished", False),
            ("hparams.yaml", "failed", False),  # there is nothing to go on from
            ("hparams.yaml", None, True),  # killed before its first checkpoint
        ]
    ):
        run = tmp_path / f"run{age}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "hparams.yaml").write_text("task: dino\n")
        if name != "hparams.yaml":
            (run / "checkpoints" / name).touch()
        for file in run.rglob("*.*"):
            os.utime(file, (0, age if file.name == name else 9))
        if status:
            (run / "summary.json").write_text(f'{{"status": "{status}"}}')
        newest = run if counts else newest
        assert newest_unfinished(str(tmp_path)) == newest


def test_a_run_in_the_folder_of_runs_comes_before_one_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in (tmp_path / "mine", tmp_path / "runs" / "mine"):
        run.mkdir(parents=True)
        (run / "hparams.yaml").write_text("task: dino\n")
    assert find_run("mine", "runs") == find_run("run:mine", "runs") == Path("runs/mine")
    assert find_run("mine", "elsewhere") == Path("mine")
    for number in range(10):
        (tmp_path / "runs" / f"n{number}").mkdir()
        (tmp_path / "runs" / f"n{number}" / "hparams.yaml").touch()
    with pytest.raises(ConfigError, match=r"Known: n2, n3, n4, n5, n6, n7, n8, n9\.$"):
        find_run("something", "runs")


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/best.ckpt", "hparams.yaml"])
def test_the_run_around_a_file_is_named(tmp_path, part):
    run = tmp_path / "runs" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    for file in ("hparams.yaml", "checkpoints/best.ckpt"):
        (run / file).write_text("task: dino\n")
    for given in (f"mine/{part}", str(run / part)):
        with pytest.raises(ConfigError, match=f"Give the run itself: {run}$"):
            find_run(given, str(run.parent))


def test_paths_below_home_are_spelt_out(tmp_path, monkeypatch):
    """Shells replace `~` neither after `--option=` nor in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text("run: {dir: ~/mine}\n")
    assert hparams("--run.dir=~/runs").run.dir == f"{tmp_path}/runs"
    assert hparams("--backbone.weights", "~/dino.pth").backbone.weights == f"{tmp_path}/dino.pth"
    assert hparams("--experiment=~/mine.yaml").run.dir == f"{tmp_path}/mine"
    study = parse(["--study", "quick", "--run.dir=~/runs", "--data.root=~/data"])
    assert isinstance(study, Command)
    assert (study.hparams.run.dir, study.overrides) == (
        f"{tmp_path}/runs",
        [f"--data.root={tmp_path}/data"],
    )
    edited = Hparams()
    edited.run.dir = "~/runs"
    assert check(edited).run.dir == f"{tmp_path}/runs"


def test_a_run_without_settings_is_started_again_where_it_was(tmp_path):
    run = tmp_path / "runs" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    for name, place in (("mine", run.parent), (str(run), tmp_path)):
        with pytest.raises(ConfigError, match=f"--run.name mine --run.dir {run.parent} and"):
            find_run(name, str(place))


@pytest.mark.parametrize("action", ["--evaluate", "--predict", "--export", "--compare"])
def test_what_an_action_does_not_read_is_refused(tmp_path, action):
    (tmp_path / "hparams.yaml").write_text("task: segmentation\n")
    words = [action, str(tmp_path), *(["--images", "."] if action == "--predict" else [])]
    assert isinstance(parse([*words, "--run.dir", "elsewhere", "--debug"]), Command)
    ineffective = [["--optim.lr=0.1"], ["--run.name", "x"], ["--trainer.max_steps", "3"]]
    if action == "--compare":
        ineffective += [
            ["--task", "segmentation"],
            ["--data.root", "x"],
            ["--experiment", "bt-r50"],
        ]
    for more in ineffective:
        option = more[0].partition("=")[0]
        with pytest.raises(ConfigError, match=f"^{option} has no effect with {action}: "):
            parse([*words, *more])


def test_variables_of_a_script_are_not_those_of_the_settings():
    script = "names = Count = Needs = ['cat']; from config.parsing import parse; parse([])"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=CONFIG_DIR.parent)


def started(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONFIG_DIR.parent / "main.py"), *words]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)


def test_an_error_in_an_own_part_is_shown_with_its_place(tmp_path):
    (tmp_path / "torch.py").write_text("from config.names import no_such_name")
    done = started("--run.dir", str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "Set the project up" not in done.stderr
    assert "from config.names import no_such_name" in done.stderr


def test_a_terminal_that_cannot_spell_our_signs_shows_the_rest():
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = started("--help", **plain, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Bala?evi? et al. 2023" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("raise ModuleNotFoundError('no', name='torch')", "This Python lacks torch. Set the pro"),
        ("raise ImportError('libc10.so')", "This Python cannot load a package: libc10.so. Set"),
    ],
)
def test_a_package_that_is_missing_or_broken_is_one_message(tmp_path, content, told):
    (tmp_path / "torch.py").write_text(content)
    done = started("--run.dir", str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(told)
    assert "Traceback" not in done.stderr
