"""An exported backbone works in plain timm, with the lines that are printed."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from agents.commands.export import export
from config.names import BACKBONES, TIMM, split
from main import main
from utils.imports import load
from utils.run_folder import RunFolder

SMALL = {
    "vit_tiny": {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2},
    "vit_small": {"patch_size": 16, "depth": 1},
    "vit_base": {"depth": 1, "mlp_ratio": 2.0},
    "vit_pytorch": {"depth": 1, "embed_dim": 24, "num_heads": 3},
}


NAMES = [*(name for name in BACKBONES if name != TIMM), "timm/test_vit3", "timm/test_convnext"]


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_lines_load_it(name, tmp_path):
    torch.manual_seed(0)
    row, member = split(name)
    backbone = load(BACKBONES[row])(*member, image_size=64, **SMALL.get(name, {})).eval()
    # Running statistics that are not those of a new network.
    for buffer_name, buffer in backbone.net.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_()
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    printed = export(SimpleNamespace(backbone=backbone), folder)
    lines = [line.strip() for line in printed if line.startswith("    ")]
    scope: dict = {}
    exec("\n".join(lines), scope)
    with safe_open(folder.exported, "pt") as file:
        assert file.metadata()["load"].splitlines() == lines
        assert set(file.keys()) == set(backbone.net.state_dict())
    if name == "botnet50":
        assert "no BoTNet" in lines[0]
        assert scope["state"].keys() == backbone.net.state_dict().keys()
        return
    # Two lines beside the imports.
    assert sum(not line.startswith(("import", "from")) for line in lines) == 2
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images).pooled
        found = scope["model"].eval()(backbone.normalise(images))
    if found.ndim == 3:  # without a classifier vit-pytorch's gives all tokens
        found = found[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_another_stem_has_no_plain_network():
    assert load(BACKBONES["resnet18"])(image_size=32, stem="cifar").plain is None


def test_an_unfinished_run_is_not_exported(train, capsys):
    _, folder = train("run", trainer__max_epochs=1)
    for state in ({"status": "interrupted"}, {"status": "failed"}):
        RunFolder(folder).write_summary(state)
        assert main(["--export", "run", "--run.dir", str(folder.parent)]) == 2
        said = capsys.readouterr().err
        assert f"the run is {state['status']}" in said
        assert "--run.resume run" in said
    (folder / "summary.json").unlink()
    assert main(["--export", "run", "--run.dir", str(folder.parent)]) == 2
    assert "the run is not finished" in capsys.readouterr().err
