"""Two processes do exactly what one does; both are started once for all checks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from main import main
from tests.agents.test_barlow_twins import difference
from tests.agents.test_linear_probe import colours
from tests.conftest import options, summary, tiny, weights
from utils.metrics_file import read_metrics

ROOT = Path(__file__).parents[1]
EXACT = {
    "trainer.precision": "64-true",
    "optim.name": "sgd",
    "optim.lr": 0.05,
    "optim.warmup_epochs": 0,
}


def cases(labelled: Path) -> dict[str, dict]:
    return {
        "barlow_twins": {**EXACT},
        "chunked": {**EXACT, "trainer.chunk_size": 2},
        "vicreg": {**EXACT, "barlow_twins.loss": "vicreg"},
        # Each process mixes its own images, so that two are something else than one.
        "mixed": {**EXACT, "barlow_twins.mix": 4.0, "trainer.chunk_size": 2},
        "dino": {
            **EXACT,
            "task": "dino",
            "dino.momentum_teacher": 0.8,
            "dino.freeze_last_layer_steps": 1,
            "dino.head_batch_norm": "false",
        },
        "dino_accumulated_pieces": {
            **EXACT,
            "task": "dino",
            "data.batch_size": 4,
            "trainer.accumulate": 2,
            "trainer.chunk_size": 2,
            "dino.head_batch_norm": "false",
        },
        "dino_batch_norm": {
            **EXACT,
            "task": "dino",
            "dino.head_batch_norm": "true",
            "trainer.chunk_size": 2,
        },
        "dino_twins": {
            **EXACT,
            "task": "dino_twins",
            "dino_twins.pairs": "all",
            "dino.head_batch_norm": "false",
            "trainer.chunk_size": 2,
        },
        "twins_sigreg": {
            **EXACT,
            "task": "dino_twins",
            "dino_twins.term": "sigreg",
            "dino.head_batch_norm": "false",
            "trainer.chunk_size": 2,
        },
        "lejepa": {**EXACT, "task": "lejepa", "trainer.chunk_size": 2},
        "segmentation": {
            **EXACT,
            "task": "segmentation",
            # Void pixels make the mean of two means another loss; the evaluation is what counts.
            "optim.lr": 0,
            "segmentation.head": "linear",
            "trainer.max_epochs": 1,
            "data.val_fraction": 0.3,
        },
        "knn_head": {
            "trainer.precision": "64-true",
            "task": "segmentation",
            "segmentation.head": "knn",
            "backbone.freeze": "true",
            "data.val_fraction": 0.3,
        },
        "linear_probe": {
            "trainer.precision": "64-true",
            "task": "linear_probe",
            "probe.kind": "knn",
            "data.val_fraction": 0.3,
            "data.name": "image_folder",
            "data.root": labelled,
        },
    }


def command(settings: dict, name: str, root: Path, runs: Path) -> list[str]:
    place = {"data.root": root, "run.dir": runs, "run.name": name}
    return options(tiny({**place, **settings}))


@pytest.fixture(scope="module")
def runs(shapes_root, tmp_path_factory):
    """The folders of the same runs by one process and by two."""
    folder = tmp_path_factory.mktemp("distributed")
    labelled = colours(folder / "colours", each=7)
    all_cases = cases(labelled)
    two = [
        command({**settings, "trainer.devices": 2}, name, shapes_root, folder / "two")
        for name, settings in all_cases.items()
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
            "TWINSIGHT_RUN_FOLDER": "of/another/run",
            "PYTHONPATH": str(ROOT),
        }
        words = [sys.executable, "-m", "tests.distributed_worker", json.dumps(two)]
        words.append(str(folder / "codes.json"))
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(words, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
        )
    for name, settings in all_cases.items():
        assert main(command(settings, name, shapes_root, folder / "one")) == 0
    errors = [process.communicate(timeout=400)[1][-2000:] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n\n".join(errors)
    assert json.loads((folder / "codes.json").read_text()) == [0] * len(two)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "barlow_twins",
        "chunked",
        "dino",
        "dino_accumulated_pieces",
        "dino_batch_norm",
        "dino_twins",
        "lejepa",
        "twins_sigreg",
        "vicreg",
    ],
)
def test_weights_are_those_of_one_process(runs, name):
    # SGD: weights differ by no more than gradients do. DINO's include the teacher and the centre.
    one, two = (weights(runs / which / name) for which in ("one", "two"))
    # BatchNorm of what a network at random says, nearly the same of all images, enlarges rounding.
    assert difference(two, one) < (1e-8 if name == "dino_batch_norm" else 1e-10)
    steps = {summary(runs / which / name)["steps"] for which in ("one", "two")}
    assert len(steps) == 1


@pytest.mark.parametrize(
    "name", ["barlow_twins", "chunked", "dino", "dino_twins", "lejepa", "vicreg"]
)
def test_losses_are_those_of_one_process(runs, name):
    one, two = (read_metrics(runs / which / name / "metrics.csv") for which in ("one", "two"))
    for step, row in one.items():
        for key in ("train/loss", "val/loss"):
            if key in row:
                assert two[step][key] == pytest.approx(row[key], rel=1e-6)


def test_evaluations_are_those_of_one_process(runs):
    measured = {"segmentation": "test/", "knn_head": "test/", "linear_probe": "test/knn"}
    for name, prefix in measured.items():
        one, two = (summary(runs / which / name) for which in ("one", "two"))
        keys = [key for key in one if key.startswith(prefix)]
        assert keys
        for key in keys:
            assert two[key] == pytest.approx(one[key], rel=1e-6), key


def test_one_folder_is_written_by_one_process(runs):
    for name in cases(Path()):
        folder = runs / "two" / name
        assert (folder / "hparams.yaml").exists()
        assert summary(folder)["status"] == "finished"
        assert not list((runs / "two").glob(f"{name}-*"))
    assert summary(runs / "two" / "barlow_twins")["images_per_second"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainer.devices": 3}, "8 cannot be divided among 3 processes"),
        ({"trainer.devices": 8}, "at least two images each"),
        ({"trainer.sync_batchnorm": "true"}, "has no effect with --trainer.devices 1"),
        ({"trainer.devices": 2, "trainer.tune_lr": "true"}, "tune first"),
    ],
)
def test_impossible_divisions(settings, message, shapes_root, tmp_path, capsys):
    assert main(command(settings, "run", shapes_root, tmp_path)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_processes_started_from_outside_need_a_name(tmp_path, monkeypatch):
    from utils.run_folder import folder_of_leader

    monkeypatch.delenv("TWINSIGHT_RUN_FOLDER", raising=False)
    with pytest.raises(ValueError, match=r"common --run\.name"):
        folder_of_leader(str(tmp_path), None)
    assert folder_of_leader(str(tmp_path), "mine").path == tmp_path / "mine"
    monkeypatch.setenv("TWINSIGHT_RUN_FOLDER", "of/the/parent")
    assert folder_of_leader(str(tmp_path), "mine").path == tmp_path / "mine"
    assert folder_of_leader(str(tmp_path), None).path == Path("of/the/parent")
