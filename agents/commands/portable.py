"""Writes a network as one file that runs without this project: ONNX or torch.export.

Both take any number and, if the network allows it, any size of images. Before they are saved, their
outputs are compared with the network's on random images.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from models.exported import Exported
from utils.imports import is_installed

PortableFormat = Literal["onnx", "pt2"]
TOLERANCE = 1e-4
_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}

Run = Callable[[Tensor], Sequence[Tensor]]
Shape = tuple[int, int, int, int]  # of images, (B, 3, H, W)


class Portable(NamedTuple):
    """An exported network.

    Attributes:
        content: of the file.
        difference: largest difference from the network's own outputs on random images.
        side: of the only images it takes, in pixels; None: any.
    """

    content: bytes
    difference: float
    side: int | None


def check_installed(form: str) -> None:
    """Checks that the packages that write a format are installed.

    Raises:
        ValueError: some are not; says how to install them.
    """
    if missing := [name for name in _NEEDED.get(form, ()) if not is_installed(name)]:
        raise ValueError(
            f"--format {form} needs {', '.join(missing)}: "
            f".venv/bin/pip install {' '.join(_NEEDED[form])}"
        )


def make_portable(
    network: Exported, form: PortableFormat, side: int, about: Mapping[str, Any]
) -> Portable:
    """Traces a network, writes it in a format, and compares the two.

    Args:
        network: on the CPU.
        form: `onnx` or `pt2`.
        side: of the images it was trained with, in pixels.
        about: written into the file.

    Raises:
        ValueError: the format cannot express the network, or gives other outputs.
    """
    write = {"onnx": _onnx, "pt2": _pt2}[form]
    facts = {name: json.dumps(value) for name, value in about.items()}
    near = _near(side, network.multiple)
    fixed = (2, 3, near, near)
    attempts: list[tuple[Shape, list[Shape], int | None]] = [
        (fixed, [(1, 3, near, near), (3, 3, near, near)], network.fixed_side or near)
    ]
    if network.traces_any_size:
        attempts.insert(0, (*_any_sizes(side, network), None))
    reasons = []
    for traced, checked, only_side in attempts:
        try:
            with _quiet():
                program = _traced(network, traced, only_side is None)
                content, run = write(program, network, facts)
                return Portable(content, _difference(network, run, [traced, *checked]), only_side)
        except Exception as error:  # whatever torch, onnxscript or onnxruntime cannot do
            reasons.append(_reason(error))
    raise ValueError(
        f"--format {form}: this {network.name} cannot be written in it: "
        f"{reasons[-1].rstrip('.')}. Take another format."
    )


def _reason(error: BaseException) -> str:
    """Returns the root cause of an exporter's error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def _near(side: float, multiple: int) -> int:
    return max(2, round(side / multiple)) * multiple


def _any_sizes(side: int, network: Exported) -> tuple[Shape, list[Shape]]:
    """Returns the shape to trace with, and the shapes to compare afterwards.

    The traced shape is special in no way, so that nothing about it is taken for fixed: neither
    square nor the native size, and of whole patches only if it must be.
    """
    small, native, large, larger = (
        _near(factor * side, network.multiple) for factor in (0.75, 1, 1.25, 1.5)
    )
    odd = 3 if network.multiple == 1 else 0
    traced = (2, 3, large + odd, larger + odd)
    return traced, [(1, 3, native, native), (3, 3, larger, small)]


def _traced(network: Exported, shape: Shape, any_size: bool) -> ExportedProgram:
    dynamic = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if any_size else {0: Dim.DYNAMIC}
    with torch.no_grad():
        return torch.export.export(
            network, (_random(shape),), dynamic_shapes={"images": dynamic}, strict=False
        )


def _onnx(
    program: ExportedProgram, network: Exported, facts: Mapping[str, str]
) -> tuple[bytes, Run]:
    import onnxruntime

    made = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=list(network.outputs),
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props.update(facts)
    content = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = list(network.outputs)

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(names, {"images": images.numpy()})]

    return content, run


def _pt2(
    program: ExportedProgram, network: Exported, facts: Mapping[str, str]
) -> tuple[bytes, Run]:
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files=dict(facts))
    content = stream.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


@torch.no_grad()
def _difference(network: Exported, run: Run, shapes: Sequence[Shape]) -> float:
    largest = 0.0
    for shape in shapes:
        images = _random(shape)
        for expected, found in zip(network(images), run(images), strict=True):
            if expected.shape != found.shape:
                raise ValueError(f"it gives {tuple(found.shape)} for {tuple(expected.shape)}")
            scale = max(1.0, float(expected.abs().max()))
            largest = max(largest, float((expected - found).abs().max()) / scale)
    if not largest <= TOLERANCE:  # NaN among them
        raise ValueError(f"it differs from the network by {largest:.2g}")
    return largest


def _random(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(shape[2])
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' own messages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
