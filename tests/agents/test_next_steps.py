"""What a run proposes at its end can be done, with the run's own settings."""

import shlex
from pathlib import Path

import pytest

from agents.closing import Closed, show
from agents.next_steps import (
    Step,
    given_settings,
    has_classes,
    next_steps,
    resume_command,
    training_command,
)
from config.effective import active_settings
from config.hparams import Hparams
from config.length import resolve_for_data
from config.lookup import CONFIG_DIR, find_run, read_experiment
from config.parsing import Command, parse
from config.resolve import resolve
from config.settings_tree import update
from config.validation import check
from config.yaml_files import read_yaml, write_yaml
from datamodules.cifar10 import CIFAR10
from datamodules.coco_stuff import COCOStuff
from datamodules.image_folder import ImageFolder
from datamodules.shapes import Shapes
from main import main
from tests.conftest import options, tiny
from utils.run_folder import RunFolder

EXPERIMENTS = sorted((CONFIG_DIR / "experiments").glob("*.yaml"))


def parsed(words: list[str]) -> Hparams:
    command = parse(words)
    assert isinstance(command, Command)
    return command.hparams


def words_of(command: str) -> list[str]:
    python, main_file, *words = shlex.split(command)
    assert (python, main_file) == ("python", "main.py")
    return words


def finished(given: Hparams, tmp_path: Path, name: str = "mine") -> tuple[RunFolder, Hparams]:
    """The folder and the resolved settings of a run with these settings."""
    given.run.dir = str(tmp_path / "all [my] runs")
    folder = RunFolder(Path(given.run.dir) / name)
    folder.path.mkdir(parents=True)
    hparams = resolve_for_data(resolve(given), 1000, on_gpu=True)
    write_yaml(active_settings(hparams), folder.hparams)
    return folder, hparams


def steps_of(words: list[str], source, tmp_path: Path) -> dict[str, list[str]]:
    """Proposals after a run, each of which the command line takes."""
    given = parsed(words)
    folder, hparams = finished(given, tmp_path)
    steps = next_steps(folder, given, hparams, source)
    found = {step.what: words_of(step.command) for step in steps}
    for command in found.values():
        parsed([word.replace("RUN", "mine") for word in command])
    assert len(found) == len(steps)
    return found


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_settings_survive_the_way_through_a_command(file):
    given = check(update(Hparams(), read_experiment(str(file)), str(file)))
    assert parsed(words_of(training_command(given_settings(given)))) == given


def test_nothing_given_needs_no_option():
    assert words_of(training_command(given_settings(parsed([])))) == []


def test_training_longer_keeps_what_was_given(tmp_path):
    root = str(tmp_path / "my [x] $pictures 'here'")
    words = ["--backbone.name", "resnet18", "--data.name", "image_folder", "--data.root", root]
    words += ["--optim.lr", "3e-05", "--trainer.max_epochs", "7", "--run.name", "first"]
    longer = parsed(steps_of(words, ImageFolder(root), tmp_path)["train longer"])
    expected = parsed(words)
    expected.trainer.max_epochs, expected.run.name = 28, None
    expected.run.dir = longer.run.dir
    assert longer == expected


def after_a_try_out(words: list[str], tmp_path: Path) -> list[Step]:
    """What is proposed after a run with these words and `--fast`."""
    command = parse([*words, "--fast"])
    assert isinstance(command, Command)
    folder, hparams = finished(command.hparams, tmp_path)
    source = Shapes(str(tmp_path))
    return next_steps(folder, command.hparams, hparams, source, command.tried_out)


def test_after_a_try_out_comes_the_run_itself(tmp_path):
    words = ["--optim.lr", "3e-05", "--trainer.max_epochs", "7", "--data.batch_size", "64"]
    steps = after_a_try_out(words, tmp_path)
    assert parsed(words_of(steps[0].command)) == parsed(words)
    for step in steps:
        given = parsed([word.replace("RUN", "mine") for word in words_of(step.command)])
        assert given.trainer.limit_train_batches is None


def test_after_a_try_out_of_nearest_patches_nothing_is_trained(tmp_path):
    words = ["--task", "segmentation", "--segmentation.head", "knn", "--backbone.freeze", "true"]
    step, *_ = after_a_try_out(words, tmp_path)
    assert step.what == "measure all images"
    assert parsed(words_of(step.command)) == parsed(words)


def test_training_longer_counts_in_what_was_given(tmp_path):
    found = steps_of(["--trainer.max_steps", "30"], Shapes(str(tmp_path)), tmp_path)
    longer = parsed(found["train longer"])
    assert (longer.trainer.max_steps, longer.trainer.max_epochs) == (120, "auto")


def test_other_images_leave_out_what_belongs_to_these(tmp_path):
    words = ["--data.image_size", "64", "--callbacks.dense_knn.num_images", "50"]
    words += ["--optim.lr", "0.25"]
    yours = parsed(steps_of(words, Shapes(str(tmp_path)), tmp_path)["train on your images"])
    assert (yours.data.name, yours.data.root, yours.optim.lr) == ("image_folder", "FOLDER", 0.25)
    assert yours.backbone.name == "vit_small"  # not the toy of the demonstration
    assert yours.data.image_size == "auto"


def labelled_folder(root: Path) -> ImageFolder:
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").touch()
    return ImageFolder(str(root), val_fraction=0.0)


def unlabelled_folder(root: Path) -> ImageFolder:
    root.mkdir()
    (root / "1.png").touch()
    return ImageFolder(str(root), val_fraction=0.0)


def test_what_was_learnt_is_measured_as_the_images_allow(tmp_path):
    cifar = CIFAR10(str(tmp_path))
    cifar.labels = lambda split: (("cat", "dog"), [0, 1])  # type: ignore[method-assign]
    sources = {
        "shapes": (Shapes(str(tmp_path)), {"segmentation", "linear_probe"}),
        "cifar10": (cifar, {"linear_probe"}),
        "coco_stuff": (COCOStuff(str(tmp_path)), {"segmentation"}),
    }
    for name, (source, expected) in sources.items():
        words = ["--data.name", name, "--data.root", str(tmp_path), "--task", "dino"]
        found = steps_of(words, source, tmp_path / name)
        probes = [parsed(words) for what, words in found.items() if "learnt" in what]
        assert {each.task for each in probes} == expected
        assert {each.data.name for each in probes} == {name}
        assert {each.backbone.weights for each in probes} == {"run:mine"}
    for make, data in ((labelled_folder, "image_folder"), (unlabelled_folder, "cifar10")):
        source = make(tmp_path / make.__name__)
        words = ["--data.name", "image_folder", "--data.root", str(source.root)]
        found = steps_of(words, source, tmp_path / f"runs of {make.__name__}")
        (probe,) = (parsed(words) for what, words in found.items() if "learnt" in what)
        assert (probe.task, probe.data.name) == ("linear_probe", data)


def test_what_was_learnt_is_measured_at_the_size_and_place_of_the_run(tmp_path):
    words = ["--data.image_size", "64", "--data.num_workers", "3", "--trainer.accelerator", "cpu"]
    found = steps_of([*words, "--optim.lr", "0.25"], Shapes(str(tmp_path)), tmp_path)
    probes = [words for what, words in found.items() if "learnt" in what]
    assert len(probes) == 2
    for probe in map(parsed, probes):
        assert (probe.data.image_size, probe.data.num_workers) == (64, 3)
        assert (probe.trainer.accelerator, probe.optim.lr) == ("cpu", "auto")


def test_one_class_alone_is_no_classes(tmp_path):
    source = labelled_folder(tmp_path / "images")
    assert has_classes(source)
    (source.root / "b" / "1.png").unlink()
    (source.root / "b").rmdir()
    assert not has_classes(ImageFolder(str(source.root), val_fraction=0.0))


def test_a_segmentation_names_a_protocol_that_fits(tmp_path):
    words, what = ["--task", "segmentation"], "judge it by the other protocol"
    found = steps_of(words, Shapes(str(tmp_path)), tmp_path / "a")
    assert parsed(found[what]).segmentation.protocol == "voc12_seed224"
    other = [*words, "--segmentation.protocol", "voc12_seed224"]
    found = steps_of(other, Shapes(str(tmp_path)), tmp_path / "b")
    assert parsed(found[what]).segmentation.protocol == "voc12_standard"
    # Without background there is none to count void as.
    words += ["--data.name", "coco_stuff"]
    assert what not in steps_of(words, COCOStuff(str(tmp_path)), tmp_path / "c")


def test_where_nothing_is_trained_nothing_is_trained_longer(tmp_path):
    words = ["--task", "linear_probe", "--probe.kind", "knn"]
    assert "train longer" not in steps_of(words, Shapes(str(tmp_path)), tmp_path)


def test_a_resumed_run_is_repeated_from_its_file(tmp_path):
    first = parsed(["--trainer.max_epochs", "5", "--optim.lr", "0.125"])
    folder, _ = finished(first, tmp_path)
    given = parsed(["--run.resume", "mine", "--run.dir", str(folder.path.parent)])
    hparams = resolve_for_data(resolve(given), 1000, on_gpu=True)
    steps = next_steps(folder, given, hparams, Shapes(str(tmp_path)))
    (command,) = (words_of(step.command) for step in steps if step.what == "train longer")
    longer = parsed(command)
    assert (longer.optim.lr, longer.trainer.max_epochs) == (0.125, 20)
    assert longer.run.resume == "none"


def test_an_interrupted_run_goes_on_as_its_reason_asks(tmp_path):
    folder, given = finished(parsed([]), tmp_path, "a [b] run")
    words = words_of(resume_command(folder, given, "--data.num_workers 0"))
    resumed = parsed(words)
    assert Path(resumed.run.resume) == folder.path
    assert resumed.data.num_workers == 0


@pytest.mark.parametrize("task", ["dino", "segmentation", "linear_probe"])
def test_a_run_that_was_moved_is_found_by_what_is_proposed(task, tmp_path):
    folder, hparams = finished(parsed(["--task", task]), tmp_path)
    (tmp_path / "moved").mkdir()
    moved = RunFolder(folder.path.rename(tmp_path / "moved" / "mine"))
    given = parsed(["--run.resume", str(moved.path)])
    assert given.run.dir != str(moved.path.parent)  # which is where it was started
    commands = [step.command for step in next_steps(moved, given, hparams, Shapes(str(tmp_path)))]
    for words in map(words_of, [*commands, resume_command(moved, given)]):
        command = parse(words)
        assert isinstance(command, Command)
        place, weights = command.hparams.run.dir, command.hparams.backbone.weights
        named = [
            command.evaluate,
            command.predict,
            *command.compare[:1],
            command.hparams.run.resume,
        ]
        if weights.startswith("run:"):
            named.append(weights)
        for run in named:
            assert run in (None, "none") or find_run(run, place) == moved.path


def test_what_there_is_is_said_and_where_it_lies(tmp_path, capsys):
    result = {
        "status": "finished",
        "reason": "",
        "steps": 3,
        "wall_seconds": 0.0,
        "images_per_second": 900.0,
        "data_wait_share": 0.5,
        "preparation_seconds": 0.0,
        "training_seconds": 0.0,
        "validation_seconds": 0.0,
        "readout_seconds": 0.0,
        "test_seconds": 0.0,
        "alarms": [],
        "unreadable_images": 0,
        "transductive": False,
    }
    folder = RunFolder(tmp_path / "run")
    show(folder, Hparams(), Closed(result), [])
    said = capsys.readouterr().out
    assert "Training 0 s (900 images/s, 50% of it waiting for data)." in said
    places = [f"report       {folder.report}", f"figures      {folder.figures}"]
    assert not any(place in said for place in places)  # nothing is where nothing lies
    folder.figures.mkdir(parents=True)
    folder.report.touch()
    show(folder, Hparams(), Closed(result), [])
    lines = capsys.readouterr().out.splitlines()
    assert all(place in lines for place in places)
    hparams = parsed(["--data.batch_size", "64", "--trainer.accumulate", "2"])
    show(folder, hparams, Closed(result), [])
    assert "3 steps of 2 x 64 images" in " ".join(capsys.readouterr().out.split())


def test_readouts_that_take_more_than_a_quarter_are_named(tmp_path, capsys):
    seconds = {"embeddings": 20.0, "views": 6.0, "dense_knn": 3.0, "feature_maps": 1.0}
    result = {
        **{"status": "finished", "reason": "", "steps": 3, "images_per_second": 9.0},
        **{"data_wait_share": 0.0, "training_seconds": 70.0, "validation_seconds": 0.0},
        **{"preparation_seconds": 0.0},
        **{"test_seconds": 0.0, "alarms": [], "unreadable_images": 0, "transductive": False},
        **{f"readout_seconds/{name}": taken for name, taken in seconds.items()},
    }
    for readouts, wall, named in ((30.0, 119.0, True), (30.0, 121.0, False)):
        told = {"readout_seconds": readouts, "wall_seconds": wall}
        show(RunFolder(tmp_path), Hparams(), Closed(result | told), [])
        said = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "readouts and pictures 30 s." in said
        words = "Most of the readouts: embeddings 20 s, views 6 s, dense_knn 3 s (less often: "
        words += "--callbacks.NAME.every_n_epochs or every_n_steps, not at all: "
        words += "--callbacks.NAME.enabled false)."
        assert (words in said) is named


def test_closing_words_print_names_and_commands_as_they_are(shapes_root, tmp_path, capsys):
    runs = tmp_path / "my [bold] runs with a path that is longer than any terminal is wide"
    settings = tiny(
        {
            "run.dir": runs,
            "run.name": "a [x] [red] run",
            "data.root": shapes_root,
            "trainer.max_epochs": 1,
        }
    )
    assert main(options(settings)) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = RunFolder(runs / "a [x] [red] run")
    assert any("a [x] [red] run" in line for line in lines if line.startswith("╭"))
    assert f"settings     {folder.hparams}" in lines
    commands = [line.strip() for line in lines if line.startswith("    python")]
    assert len(commands) == 4
    assert read_yaml(folder.hparams)["run"]["dir"] == str(runs)
    for command in commands:
        assert parsed(words_of(command)).run.dir == str(runs)
    (took,) = (line for line in lines if "Training" in line)
    assert "images/s" in took


def test_commands_name_the_file_as_it_is_called_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIG_DIR.parent)
    assert training_command({}) == "python main.py"
    (tmp_path / "link").symlink_to(CONFIG_DIR.parent)
    monkeypatch.chdir(tmp_path / "link")
    assert training_command({}) == "python main.py"
    monkeypatch.chdir(tmp_path)
    _, file = shlex.split(training_command({}))
    assert Path(file).samefile(CONFIG_DIR.parent / "main.py")
