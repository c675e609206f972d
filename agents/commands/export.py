"""Exports a run's network for use outside of this project.

`safetensors` holds its backbone, with the key names of its public layout. `onnx` and `pt2` hold its
backbone, or a whole segmentation network, as a program that runs by itself. Each gets a model card.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from agents.base import Agent
from agents.commands.model_card import write_card
from agents.commands.portable import PortableFormat, check_installed, make_portable
from agents.commands.trained import trained_agent
from agents.protocols import protocol_of_test
from agents.segmentation import Segmentation
from config.hparams import Hparams
from config.parsing import ExportFormat
from models.backbones.base import Backbone
from models.exported import Exported, ExportedBackbone, ExportedSegmenter
from utils.files import make_folder, write_atomically
from utils.run_checkpoints import best_or_last
from utils.run_folder import RunFolder
from utils.text import command_line

# Which weights are exported, for the model card.
_OF_CHECKPOINTS = {
    "best.ckpt": "that validated best",
    "last.ckpt": "of the last step",
    "previous.ckpt": "of the checkpoint before the last, as that is damaged",
}


def export_run(folder: RunFolder, hparams: Hparams, form: ExportFormat) -> list[str]:
    """Writes a run's network in a format, and its model card.

    Args:
        folder: the run.
        hparams: its settings.
        form: of the file.

    Returns:
        What to print.

    Raises:
        ValueError: the run has not finished, a package for the format is missing, or the format
            cannot hold the network; see also `trained_agent`.
    """
    _check_finished(folder)
    check_installed(form)
    # A whole segmentation network has the weights that were tested, a backbone the last ones.
    whole = hparams.task == "segmentation" and form != "safetensors"
    checkpoint = best_or_last(folder) if whole else folder.last
    agent, *_ = trained_agent(folder, hparams, checkpoint)
    if form == "safetensors":
        return export_with_card(agent, folder)
    return export_program(agent, folder, form, checkpoint)


def _check_finished(folder: RunFolder) -> None:
    if not folder.finished:
        status = folder.read_summary().get("status", "not finished")
        raise ValueError(
            f"--export {folder.name}: the run is {status}, so its backbone is not fully trained. "
            f"Finish it first: --run.resume {_called(folder)}"
        )


def export(agent: Agent, folder: RunFolder) -> list[str]:
    """Writes backbone.safetensors.

    Args:
        agent: of the run, with its last weights.
        folder: the run's.

    Returns:
        What to print: the file and how to load it, here and with plain timm.
    """
    backbone = agent.backbone
    state = {k: v.detach().cpu().contiguous().clone() for k, v in backbone.net.state_dict().items()}
    lines = recipe(backbone, str(folder.exported))
    about = {"run": folder.name, "load": "\n".join(lines)}
    write_atomically(folder.exported, save(state, about))
    mean, std = (_numbers(each) for each in (backbone.mean, backbone.std))
    size = folder.exported.stat().st_size / 1e6
    return [
        f"{folder.exported}: {len(state)} tensors, {size:.0f} MB.",
        f"Use it here:      --backbone.weights run:{_called(folder)}",
        f"Use it elsewhere, on images in 0 … 1, normalised by mean {mean} and std {std}:",
        *(f"    {line}" for line in lines),
    ]


def _called(folder: RunFolder) -> str:
    # For a command without --run.dir.
    return command_line(folder.called(Hparams().run.dir))


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.flatten().tolist())


def recipe(backbone: Backbone, file: str) -> list[str]:
    """Returns the lines of Python that load a file of safetensors."""
    load = f'load_file("{file}")'
    if backbone.plain is None:
        name = type(backbone).__name__
        return [
            f"# timm and torchvision have no {name} like this one: this loads the tensors only.",
            "from safetensors.torch import load_file",
            f"state = {load}",
        ]
    return [
        f"import {backbone.plain.partition('.')[0]}",
        "from safetensors.torch import load_file",
        f"model = {backbone.plain}",
        f"model.load_state_dict({load})",
    ]


def export_with_card(agent: Agent, folder: RunFolder) -> list[str]:
    """Does what `export` does, and writes the model card."""
    lines = export(agent, folder)
    backbone = agent.backbone
    card = write_card(
        folder.exported,
        folder,
        agent.settings,
        form="safetensors",
        part="backbone",
        millions=_millions(backbone),
        chosen="of the last step",
        recipe="\n".join(recipe(backbone, folder.exported.name)),
        mean=_numbers(backbone.mean),
        std=_numbers(backbone.std),
        classes=(),
    )
    return [*lines, f"Model card: {card}"]


def export_program(
    agent: Agent, folder: RunFolder, form: PortableFormat, checkpoint: Path
) -> list[str]:
    """Writes the backbone, or the segmenter of a segmentation, as a program with its model card.

    Args:
        agent: of the run, with the weights to export.
        folder: the run's.
        form: of the file.
        checkpoint: the source of the weights.

    Returns:
        What to print: the file, its inputs and outputs, and the card.

    Raises:
        ValueError: the network cannot be written in this format.
    """
    network, side, square = _program_of(agent)
    about = {"run": folder.name, "classes": network.classes}
    made = make_portable(network, form, side, about)
    file = folder.path / "exported" / form / f"{network.name}.{form}"
    make_folder(file.parent)
    write_atomically(file, made.content)
    card = write_card(
        file,
        folder,
        agent.settings,
        form=form,
        part=network.name,
        millions=_millions(network),
        chosen=_OF_CHECKPOINTS[checkpoint.name],
        square=square or made.side is not None,
        side=made.side or side,
        only_side=made.side,
        multiple=network.multiple,
        outputs=network.outputs,
        difference=f"{made.difference:.1g}",
        classes=network.classes,
    )
    takes = f"{made.side} x {made.side} px only" if made.side else "any size"
    if not made.side and network.multiple > 1:
        takes += f", sides multiples of {network.multiple}"
    gives = ", ".join(f"{name} {shape}" for name, shape in network.outputs.items())
    return [
        f"{file}: the {network.name}, {len(made.content) / 1e6:.1f} MB.",
        f"Takes any number of images (B, 3, H, W) uint8 of {takes}; gives {gives}.",
        f"Differs from the network by at most {made.difference:.1g} on random images.",
        f"Model card, with how to load it: {card}",
    ]


def _program_of(agent: Agent) -> tuple[Exported, int, bool]:
    """Returns the network to write, the side of its images, and whether these are square."""
    side = int(agent.settings.data.image_size)
    if not isinstance(agent, Segmentation):
        return ExportedBackbone(agent.backbone), agent.backbone.side_near(side), True
    square = protocol_of_test(agent.settings).side
    network = ExportedSegmenter(agent.network, agent.classes)
    return network, square or side, square is not None


def _millions(network: nn.Module) -> str:
    return f"{sum(each.numel() for each in network.parameters()) / 1e6:.1f}"
