"""For notebooks, besides `Trainer`: read the results of a run, load its network, segment images.

Wrong settings, runs or images raise a ValueError or an OSError with one sentence, as on the command
line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agents.base import Agent
from agents.commands.predict import label
from agents.commands.trained import trained_agent
from agents.protocols import protocol_of_test
from agents.segmentation import Segmentation
from config.hparams import Hparams
from config.lookup import find_run, read_settings
from config.parsing import Command, parse
from config.settings_tree import at_home
from datamodules.grey_levels import in_rgb
from datamodules.reading import read_rgb
from utils.device import usable_device
from utils.metrics_file import read_metrics
from utils.nested import flat
from utils.run_checkpoints import best_or_last
from utils.run_folder import RunFolder
from utils.text import did_you_mean, one_line

RUNS = Hparams().run.dir


class Results(NamedTuple):
    """The results of a run so far.

    Attributes:
        folder: of the run; `folder.figures` has the pictures.
        settings: by dotted name, as on the command line.
        summary: the final numbers, and whether it finished; empty until the run has ended.
        metrics: every scalar by step. Steps count from 0.
    """

    folder: RunFolder
    settings: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[int, dict[str, float]]

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps at which a scalar was measured, and its values.

        Raises:
            ValueError: no scalar of this name was measured; suggests the nearest.
        """
        points = {step: row[name] for step, row in sorted(self.metrics.items()) if name in row}
        if not points:
            known = sorted({each for row in self.metrics.values() for each in row})
            near = did_you_mean(name, known) or f" There are: {', '.join(known) or 'none'}."
            raise ValueError(one_line(f"{self.folder.name} has measured no {name}.{near}"))
        return list(points), list(points.values())


def results(run: str | os.PathLike[str], runs_dir: str | os.PathLike[str] = RUNS) -> Results:
    """Reads the results of a run so far; it may still be training.

    Args:
        run: its name, or its folder.
        runs_dir: the folder of all runs.

    Raises:
        ValueError: there is no such run, or its settings are damaged.
    """
    folder = RunFolder(find_run(at_home(os.fspath(run)), at_home(os.fspath(runs_dir))))
    settings, metrics = flat(read_settings(folder.path)), read_metrics(folder.metrics)
    return Results(folder, settings, folder.read_summary(), metrics)


def load_run(run: str | os.PathLike[str], runs_dir: str | os.PathLike[str] = RUNS) -> Agent:
    """Returns a run's agent with its best weights, in eval mode, on the best device.

    Args:
        run: its name, or its folder.
        runs_dir: the folder of all runs.

    Raises:
        ValueError: there is no such run; it, or what it was trained on, is damaged.
        FileNotFoundError: it has no checkpoint.
    """
    command = parse(["--evaluate", os.fspath(run), "--run.dir", os.fspath(runs_dir)])
    assert isinstance(command, Command)
    assert command.evaluate
    folder = RunFolder(find_run(command.evaluate, command.hparams.run.dir))
    agent, *_ = trained_agent(folder, command.hparams, best_or_last(folder))
    return agent.to(usable_device(agent.settings.trainer.accelerator))


def segment(agent: Agent, image: str | os.PathLike[str] | Image.Image) -> NDArray[np.uint8]:
    """Labels every pixel of an image.

    Args:
        agent: of a segmentation; its `classes` name the labels.
        image: an image or its file, of any size.

    Returns:
        `(H, W)` uint8.

    Raises:
        ValueError: the agent is of another task, or `image` is something else.
        OSError: the image cannot be read.
    """
    if not isinstance(agent, Segmentation):
        raise ValueError(f"{type(agent).__name__} labels nothing: only a segmentation does.")
    if isinstance(image, str | os.PathLike):
        image = read_rgb(Path(at_home(os.fspath(image))))
    if not isinstance(image, Image.Image):  # no arrays: OpenCV's are in BGR
        raise ValueError(
            f"segment takes a file or an image of Pillow, got {type(image).__name__}. Convert an "
            "array (H, W, 3), RGB, uint8, with PIL.Image.fromarray(array)."
        )
    return label(agent, protocol_of_test(agent.settings), in_rgb(image)).labels
