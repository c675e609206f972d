"""What a frozen backbone shows is drawn once in a run, and computed once for all runs."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from main import main
from tests.conftest import summary
from utils.run_folder import RunFolder

KINDS = ("attention_maps", "attention_quality", "feature_maps", "effective_receptive_field")
SHOWN = {f"callbacks__{kind}__enabled": "true" for kind in KINDS} | {
    f"callbacks__{kind}__every_n_epochs": 1 for kind in KINDS
}
FROZEN = {
    "task": "segmentation",
    "backbone__freeze": "true",
    "data__val_fraction": 0.3,
    "data__views": "fixed",
    **SHOWN,
}


def pictures(folder: Path) -> dict[str, np.ndarray]:
    figures = RunFolder(folder).figures
    return {
        file.relative_to(figures).as_posix(): np.asarray(Image.open(file))
        for file in figures.rglob("step-*.png")
    }


def readouts(folder: Path) -> dict[str, float]:
    return {
        name: value
        for name, value in summary(folder).items()
        if "/attention/" in name or name.startswith("erf/")
    }


def test_another_head_reads_what_the_first_one_found(train, said):
    drawn, numbers = [], []
    heads = {"first": "linear", "second": "setr_naive", "without": "linear"}
    for name, head in heads.items():
        cache = "off" if name == "without" else "auto"
        code, folder = train(
            name, segmentation__head=head, data__feature_cache=cache, run__seed=1, **FROZEN
        )
        assert code == 0
        drawn.append(pictures(folder))
        numbers.append(readouts(folder))
        assert sum("The backbone is frozen" in line for line in said) == 1
        for kind in ("attention quality of test", "attention maps of val", "feature maps"):
            read = any(line.startswith(f"feature cache: {kind}") for line in said)
            assert read == (name == "second")
        said.clear()
    first, second, without = drawn
    assert len(first) == 6  # maps and quality of two splits each
    assert first.keys() == second.keys() == without.keys()
    for file, pixels in first.items():
        np.testing.assert_array_equal(pixels, second[file], file)
        np.testing.assert_array_equal(pixels, without[file], file)
    assert len(numbers[0]) > 20
    assert numbers[0] == numbers[1] == numbers[2]


def test_a_damaged_readout_is_computed_anew(train, tmp_path, said):
    code, first = train("first", **FROZEN)
    assert code == 0
    files = list((tmp_path / "runs" / ".cache" / "readouts").iterdir())
    assert len(files) == 6
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 1
        file.write_bytes(content)
    said.clear()
    code, second = train("second", **FROZEN)
    assert code == 0
    assert sum("computed anew" in line for line in said) == 6
    assert readouts(first) == readouts(second)


def test_what_is_switched_on_when_a_run_goes_on_is_drawn_then_and_once(train):
    off = FROZEN | {name: "false" for name in SHOWN if name.endswith("enabled")}
    off = {name: value for name, value in off.items() if not name.endswith("every_n_epochs")}
    _, folder = train("late", **off, trainer__max_epochs=1)
    assert not pictures(folder)
    on = [f"--{name.replace('__', '.')}={value}" for name, value in SHOWN.items()]
    place = ["--run.resume", "late", "--run.dir", str(folder.parent)]
    for epochs in (2, 3):
        assert main([*place, "--trainer.max_epochs", str(epochs), *on]) == 0
        drawn = Counter(Path(name).parent.as_posix() for name in pictures(folder))
        assert drawn.pop("attention_quality/test") == epochs - 1
        assert len(drawn) == 5
        assert set(drawn.values()) == {1}
    _, whole = train("whole", **FROZEN, trainer__max_epochs=3)
    assert readouts(folder) == readouts(whole)


def test_a_backbone_that_learns_is_drawn_again(train):
    code, folder = train("run", **FROZEN | {"backbone__freeze": ..., "data__views": ...})
    assert code == 0
    assert len(pictures(folder)) == 2 * 6 - 1 + 1  # once for the test, and before the first step
