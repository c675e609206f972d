"""`chunk_size auto`, and what a run says of itself before it starts."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agents.build import build_agent
from agents.chunks import common_chunk_size, resolve_chunk_size
from agents.preflight import announce, checkpoint_bytes, disk_needed
from config.announcement import length
from config.hparams import Hparams
from config.length import resolve_for_data
from config.resolve import resolve
from config.settings_tree import set_leaf
from datamodules.loading import Batch
from datamodules.self_supervised import ViewsDataModule
from datamodules.shapes import Shapes
from models.backbones.vit import vit_tiny
from models.heads.projector import projector
from models.memory.footprint import bytes_per_image, flops
from tests.conftest import assert_same, summary, weights
from utils.checkpoint_io import map_checkpoint
from utils.rng import CPU
from utils.text import in_units

BACKBONE = vit_tiny(image_size=32, patch_size=16, depth=2, embed_dim=24)
PER_IMAGE = bytes_per_image(BACKBONE, 32, mixed=False)
PARAMETERS = sum(p.numel() for part in (BACKBONE, projector(24, 16, 3)) for p in part.parameters())


def chunk_of(folder):
    return yaml.safe_load((folder / "hparams.yaml").read_text())["trainer"]["chunk_size"]


@pytest.mark.parametrize(
    ("images", "chunk"),
    [(16, None), (15, 4), (5, 4), (3, 2), (0.1, 2)],  # two views of eight images are 16
)
def test_a_chunk_is_as_large_as_the_memory_allows(train, monkeypatch, images, chunk, capsys):
    # 0.75 of what is free is used, less weights, gradients and moments of the parameters.
    free = ((images + 0.05) * PER_IMAGE + 16 * PARAMETERS) / 0.75 / 2**20
    monkeypatch.setattr("agents.chunks.free_mb", lambda device: free)
    code, folder = train("run", backbone__name="vit_tiny", trainer__max_steps=1)
    assert code == 0
    assert summary(folder)["steps"] == 1
    assert chunk_of(folder) == chunk
    said = capsys.readouterr().err
    assert ("images at once" in said) is (chunk is not None)


def test_processes_on_a_cpu_share_its_memory(monkeypatch):
    hparams = settings(data__batch_size=16, trainer__devices=2)  # eight images a process
    hparams.trainer.chunk_size = "auto"
    cost = SimpleNamespace(activations=(PER_IMAGE, PER_IMAGE))
    free = (2 * 5.05 * PER_IMAGE + 2 * 16 * PARAMETERS) / 0.75 / 2**20
    monkeypatch.setattr("agents.chunks.free_mb", lambda device: free)
    agent = nn.ModuleList([BACKBONE, projector(24, 16, 3)])
    agent.held_by_loss = lambda images, chunk: 0
    views = ViewsDataModule(None, None, 32, None)
    assert resolve_chunk_size(agent, views, hparams, CPU, cost) == 4


def test_where_the_network_alone_is_too_large_no_loss_is_blamed(monkeypatch, said):
    hparams, cost = settings(trainer__chunk_size="auto"), SimpleNamespace(activations=(1e6, 1e6))
    hparams.data.batch_size = 16
    agent = build_agent(resolve_for_data(resolve(settings()), 512, False), Shapes("unused"))
    monkeypatch.setattr("agents.chunks.free_mb", lambda device: 0.0)
    views = ViewsDataModule(None, None, 32, None)
    assert resolve_chunk_size(agent, views, hparams, CPU, cost) == 2
    assert " 0.0 GB are free" in said[0]  # not less than nothing
    assert not any("warning" in line for line in said)


def dino(**changed):
    """A student and a teacher of which nearly all memory is that of their many outputs."""
    small = {"backbone__name": "vit_tiny", "backbone__depth": 1, "backbone__embed_dim": 24}
    small |= {"data__image_size": 32, "dino__local_crop_size": 16, "dino__out_dim": 2**13}
    small |= {"dino__local_crops_number": 8}
    small |= {"dino__hidden_dim": 8, "dino__bottleneck_dim": 2, "dino__head_batch_norm": False}
    hparams = settings(**small, **changed)
    hparams.task = "dino"
    return build_agent(resolve_for_data(resolve(hparams), 512, False), Shapes("unused"))


class Alive(TorchDispatchMode):
    """Counts the bytes of all that is made while it is on, as long as somebody holds it.

    Attributes:
        most: that were held at once.
    """

    def __init__(self):
        super().__init__()
        self.most, self._held = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in filter(lambda leaf: isinstance(leaf, Tensor), tree_leaves(found)):
            storage = each.untyped_storage()
            self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return found


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("chunk", [None, 16])
def test_what_dinos_loss_holds_is_what_torch_allocates(precision, chunk):
    agent = dino(trainer__precision=precision, trainer__chunk_size=chunk)
    agent.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    images, sides = 64, (32, 32, *[16] * 8)
    views = [torch.zeros(images, 3, side, side, dtype=torch.uint8) for side in sides]
    batch = Batch([list(v.split(chunk or images)) for v in views], torch.arange(images), ())
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true")
    with Alive() as alive:
        with half:
            loss = agent.batch_loss(batch)
        loss.backward()
    assert agent.held_by_loss(images, chunk) == pytest.approx(alive.most, rel=0.25)


def test_a_chunk_leaves_room_for_what_the_loss_holds(monkeypatch, said):
    agent, each = dino(), 1e6  # bytes of activations of a view
    hparams, cost = agent.settings, SimpleNamespace(activations=(each,) * 10)
    hparams.data.batch_size, hparams.trainer.chunk_size = 64, "auto"
    views = ViewsDataModule(None, None, 32, None)

    def chosen(free):
        free += 16 * sum(p.numel() for p in agent.parameters())
        monkeypatch.setattr("agents.chunks.free_mb", lambda device: free / 0.75 / 2**20)
        said.clear()
        return resolve_chunk_size(agent, views, hparams, CPU, cost)

    whole = 64 * 10 * each
    assert chosen(whole + 1e6) is not None  # there is no room for logits
    assert chosen(whole + agent.held_by_loss(64, None) + 1) is None
    assert chosen(8 * each + agent.held_by_loss(64, 8) + 1) == 8
    assert not any("warning" in line for line in said)
    assert chosen(agent.held_by_loss(64, 2) - 1) == 2
    assert "a smaller --data.batch_size or --dino.out_dim" in said[-1]


@pytest.mark.parametrize("chosen", [None, 8])
def test_processes_take_the_chunk_of_the_one_that_started_them(monkeypatch, chosen):
    monkeypatch.delenv("TWINSIGHT_CHUNK_SIZE", raising=False)
    assert common_chunk_size(False, lambda: 2) == 2  # started from outside
    assert common_chunk_size(True, lambda: chosen) == chosen
    assert common_chunk_size(False, lambda: 4) == chosen


def test_processes_of_different_chunks_cannot_share_a_batchnorm(monkeypatch):
    monkeypatch.setattr("agents.base.of_all_processes", lambda chunk: [None, 4, 8])
    hparams = settings(trainer__sync_batchnorm=True)
    agent = build_agent(resolve_for_data(resolve(hparams), 512, False), Shapes("unused"))
    with pytest.raises(ValueError, match=r"chose null, 4, 8, .* one for all: .*chunk_size 4\."):
        agent.setup("fit")
    agent.settings.trainer.sync_batchnorm = False
    agent.setup("fit")


def test_an_automatic_chunk_changes_no_number(train, monkeypatch):
    _, whole = train("whole", optim__lr=1e-4)  # AdamW makes large steps of rounding
    monkeypatch.setattr("agents.chunks.free_mb", lambda device: 0.0)
    _, chunked = train("chunked", optim__lr=1e-4)
    assert chunk_of(chunked) == 2
    one, other = weights(whole), weights(chunked)
    assert all((one[key] - other[key]).abs().max() < 1e-3 for key in one)


def test_measuring_leaves_the_random_state_alone(train):
    _, measured = train("measured", backbone__drop_path=0.3)
    _, given = train("given", backbone__drop_path=0.3, trainer__chunk_size="null")
    assert_same(weights(measured), weights(given))


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_run_says_what_a_step_takes(train, capsys, chunk):
    given = {"trainer__chunk_size": chunk or "null", "trainer__max_steps": 1}
    train("run", backbone__name="vit_tiny", **given)
    # Eight images in two views; forth, back, and forth again where a chunk was forgotten.
    operations = 8 * 2 * flops(BACKBONE, 32).forth * (4 if chunk else 3)
    kept = PER_IMAGE * (chunk or 16)
    said = " ".join(capsys.readouterr().err.split())
    assert f"a step: {in_units(operations)}FLOP in the backbone" in said
    assert f"keeps {in_units(kept)}B of activations; checkpoints" in said
    assert "will be full" not in said


def test_what_a_step_keeps_is_said_of_each_process(said):
    hparams = settings(data__batch_size=16, trainer__devices=2, backbone__name="vit_tiny")
    agent = SimpleNamespace(
        settings=resolve_for_data(resolve(hparams), 64, on_gpu=False),
        trains=True,
        warnings=list,
        parameters=lambda: [],
        held_by_loss=lambda images, chunk: 0,
    )
    agent.settings.trainer.chunk_size = None
    cost = SimpleNamespace(activations=(1e6, 1e6), flops=lambda chunks: 1e9)
    announce(hparams, agent, 64, cost)
    words = "a step: 16 GFLOP in the backbone, which keeps 16 MB of activations in each process;"
    assert any(line.startswith(words) for line in said)


def test_a_step_above_a_frozen_backbone_keeps_nothing(train, capsys):
    train("run", task="segmentation", backbone__freeze="true", trainer__max_steps=1)
    assert "FLOP in the backbone, which is frozen; ch" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("task", ["segmentation", "linear_probe"])
def test_features_that_are_computed_once_are_no_part_of_a_step(train, capsys, task):
    fixed = {"backbone__freeze": "true", "data__views": "fixed"} if task == "segmentation" else {}
    train("run", task=task, trainer__max_steps=1, **fixed)
    said = " ".join(capsys.readouterr().err.split())
    assert "a step: nothing in the backbone, whose features are computed once; checkpoints" in said


def test_checkpoints_take_no_more_than_is_said_while_they_are_written(train, monkeypatch):
    sizes, held = [], []

    def measured(file):
        files = {each.stat().st_ino: each.stat().st_size for each in file.parent.iterdir()}
        held.append(sum(files.values()))
        sizes.append(file.stat().st_size)
        return map_checkpoint(file)

    monkeypatch.setattr("utils.checkpoint_io.map_checkpoint", measured)
    # The second validation is no better, so that best, previous, last and the next are four.
    worse = {"optim__lr": 10.0, "trainer__max_epochs": 6, "task": "segmentation"}
    train("run", **worse)
    assert max(held) == pytest.approx(4 * max(sizes), rel=0.01)


def test_checkpoints_hold_moments_of_what_is_trained():
    network = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    network[0].requires_grad_(False)
    assert checkpoint_bytes(network) == 4 * (10 + 3 * 3)  # two moments of what is trained
    assert disk_needed([7, 5]) == 3 * 7 + 3 * 5 + 7  # three are kept, and the next is written


GLOBAL, LOCAL = (flops(BACKBONE, side).forth for side in (32, 16))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # The teacher sees two views; the student's six go forth and back.
        ({}, (2 + 3 * 2) * GLOBAL + 3 * 4 * LOCAL),
        # A piece is differentiated before the next; but BatchNorm and a second loss want all.
        ({"chunk": 4}, (2 + 3 * 2) * GLOBAL + 3 * 4 * LOCAL),
        ({"chunk": 4, "norm": "true"}, (2 + 4 * 2) * GLOBAL + 4 * 4 * LOCAL),
        ({"chunk": 8, "norm": "true"}, (2 + 4 * 2) * GLOBAL + 4 * 4 * LOCAL),
        ({"chunk": 4, "task": "dino_twins"}, (2 + 4 * 2) * GLOBAL + 4 * 4 * LOCAL),
    ],
)
def test_what_a_step_of_dino_takes_has_the_teachers_passes(train, capsys, given, expected):
    train(
        "run",
        task=given.get("task", "dino"),
        backbone__name="vit_tiny",
        dino__local_crops_number=4,
        dino__local_crop_size=16,
        dino__head_batch_norm=given.get("norm", "false"),
        trainer__chunk_size=given.get("chunk", "null"),
        trainer__max_steps=1,
    )
    said = " ".join(capsys.readouterr().err.split())
    assert f"a step: {in_units(8 * expected)}FLOP in the backbone" in said
    assert "B of activations; the loss holds" in said


def test_a_step_that_trains_the_last_block_goes_back_through_that(train, capsys):
    frozen = {"backbone__freeze": "true", "backbone__unfreeze_last": 1}
    given = {"trainer__chunk_size": "null", "trainer__max_steps": 1}
    train("run", backbone__name="vit_tiny", **frozen, **given)
    backbone = vit_tiny(image_size=32, patch_size=16, depth=2, embed_dim=24)
    backbone.freeze(unfreeze_last=1)
    said = " ".join(capsys.readouterr().err.split())
    operations = 8 * 2 * (GLOBAL + flops(backbone, 32).back)
    assert GLOBAL < operations / 16 < 2.2 * GLOBAL  # one of two blocks
    assert f"a step: {in_units(operations)}FLOP in the backbone" in said


def test_more_blocks_than_there_are_cannot_be_trained(train, capsys):
    assert train("run", backbone__freeze="true", backbone__unfreeze_last=9)[0] == 2
    assert "--backbone.unfreeze_last 9: this network has only 2" in capsys.readouterr().err


def test_a_chunk_of_the_whole_batch_passes_once(train, capsys):
    train("run", backbone__name="vit_tiny", trainer__chunk_size=8, trainer__max_steps=1)
    said = " ".join(capsys.readouterr().err.split())
    assert f"a step: {in_units(8 * 2 * 3 * GLOBAL)}FLOP in the backbone" in said


def test_a_step_of_several_batches_takes_what_all_of_them_take(train, capsys):
    given = {"trainer__chunk_size": "null", "trainer__accumulate": 2, "trainer__max_steps": 1}
    train("run", backbone__name="vit_tiny", **given)
    said = " ".join(capsys.readouterr().err.split())
    assert f"a step: {in_units(2 * 8 * 2 * 3 * GLOBAL)}FLOP in the backbone" in said


def test_operations_that_cannot_be_counted_end_no_run(train, monkeypatch, capsys):
    def fail(backbone, side):
        raise AssertionError("no gradient function")

    monkeypatch.setattr("agents.preflight.flops", fail)
    code, _ = train("run", trainer__max_steps=1)
    assert code == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be counted: no gradient function" in said
    assert "a step: the backbone, which keeps" in said


def test_a_disk_without_room_for_checkpoints_is_said_before_training(train, monkeypatch, capsys):
    full = SimpleNamespace(free=3 * 12 * 1000)  # bytes, for checkpoints of a thousand weights
    monkeypatch.setattr("agents.preflight.shutil.disk_usage", lambda folder: full)
    code, _ = train("run", trainer__max_steps=1)
    assert code == 0
    assert "will be full before the end" in " ".join(capsys.readouterr().err.split())


def settings(**changed):
    hparams = Hparams()
    for path, value in changed.items():
        set_leaf(hparams, path.replace("__", "."), value)
    return hparams


def stops(patience, **changed):
    stopping = "callbacks__early_stopping__"
    return {f"{stopping}enabled": True, f"{stopping}patience": patience, **changed}


@pytest.mark.parametrize(
    ("changed", "images", "line", "warning"),
    [
        ({}, 1024, "batches of 128; 40 epochs of 8 steps, 320 in all", None),
        ({"trainer__max_steps": 8}, 512, "2 epochs of 4 steps, 8 in all", "Only 8 optimizer steps"),
        ({"trainer__max_epochs": 90}, 200, "90 epochs of 1 step,", "only 1 step:"),
        ({"trainer__accumulate": 2}, 1024, "of 2 x 128; 40 epochs of 4 steps", None),
        ({"trainer__max_epochs": 17}, 384, "51 in all", "only 3 steps:"),
        ({"trainer__max_epochs": 7}, 896, "49 in all", "Only 49 optimizer steps"),
        ({"trainer__max_steps": 60}, 10**5, "60 in all", "comes after 1 epoch ("),
        ({"trainer__val_every_n_epochs": 50}, 1024, "40 epochs", "comes after 50 epochs ("),
        ({"trainer__val_every_n_epochs": 40}, 1024, "40 epochs", None),
        ({"trainer__max_steps": 60, "trainer__limit_val_batches": 0}, 10**5, "60 in all", None),
        ({"trainer__limit_train_batches": 5}, 10**6, "40 epochs of 5 steps", None),
        # What would make more steps is what can be given and counts.
        ({"trainer__max_steps": 8}, 512, "8 in all", "More: --trainer.max_steps."),
        ({"trainer__max_epochs": 2}, 512, "8 in all", "or a smaller --data.batch_size."),
        (
            {"trainer__max_epochs": 2, "trainer__limit_train_batches": 3},
            512,
            "6 in all",
            "epochs, a higher --trainer.limit_train_batches.",
        ),
        ({"trainer__limit_train_batches": 3}, 512, "120 in all", "More: a higher --trainer."),
        (
            {"trainer__max_epochs": 2, "trainer__limit_train_batches": 4},
            512,
            "8 in all",
            "epochs, more images, or a smaller --data.batch_size.",
        ),
        (
            {"backbone__freeze_epochs": 39, "backbone__weights": "dino"},
            1024,
            "40 epochs",
            None,
        ),
        (stops(39), 1024, "40 epochs", "patience 39: the run has 40 validations and cannot stop"),
        (stops(38), 1024, "40 epochs", None),
        (stops(7, trainer__val_every_n_epochs=5), 1024, "40 epochs", "the run has 8 validations"),
        (stops(6, trainer__val_every_n_epochs=5), 1024, "40 epochs", None),
        (stops(50, callbacks__early_stopping__enabled=False), 1024, "40 epochs", None),
        ({"backbone__freeze_epochs": 39}, 1024, "40 epochs", "waits with random values"),
        ({"backbone__freeze_epochs": 40}, 1024, "40 epochs", "freeze_epochs 40: the backbone wai"),
        ({"optim__warmup_epochs": 40}, 1024, "40 epochs", "warmup_epochs 40: the warm-up lasts"),
        ({"optim__warmup_epochs": 39.5}, 1024, "40 epochs", None),
    ],
)
def test_a_run_says_how_long_it_will_be(changed, images, line, warning):
    hparams = resolve_for_data(resolve(settings(data__batch_size=128, **changed)), images, False)
    said, warnings = length(hparams, images)
    assert line in said
    assert f"{images:,} training images" in said
    assert bool(warnings) is (warning is not None)
    assert warning is None or warning in warnings[0]


@pytest.mark.parametrize(("accumulate", "told"), [(8, False), (9, True)])
def test_a_step_that_cannot_accumulate_what_was_asked_for_is_warned_of(accumulate, told):
    hparams = settings(data__batch_size=128, trainer__accumulate=accumulate)
    _, warnings = length(resolve_for_data(resolve(hparams), 1024, False), 1024)
    assert any("accumulate 9: a step ends with its epoch" in each for each in warnings) is told


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"trainer__max_epochs": 1}, "Only 8 optimizer steps"),  # and prototypes that learn
        ({"momentum_teacher": 1.0}, "the teacher stays as it began, and it is what is kept."),
        ({"momentum_teacher": 1.0, "export": "student"}, "the teacher stays as it began."),
        ({"momentum_teacher": 1.0, "ema": False}, None),
        ({"teacher_temp": 0.1}, "0.1 is no lower than --dino.student_temp 0.1"),
        ({"sharpening": False, "student_temp": 0.01}, None),
        ({"warmup_teacher_temp_steps": 400}, "before the teacher has its temperature"),
        ({"warmup_teacher_temp_steps": 320}, None),
        ({"freeze_last_layer_steps": 320}, "the prototypes wait until the end"),
    ],
)
def test_dino_says_what_its_length_leaves_undone(changed, said):
    named = {path if "__" in path else f"dino__{path}": value for path, value in changed.items()}
    hparams = settings(data__batch_size=128, **named)
    hparams.task = "dino"
    _, warnings = length(resolve_for_data(resolve(hparams), 1024, False), 1024)
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


def test_the_choices_are_printed_before_the_run(train, capsys):
    code, folder = train("run", data__batch_size=..., trainer__max_epochs=1)
    assert code == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "auto: data.batch_size 16, data.blur false, barlow_twins.lambd 0.1632" in said
    assert "val_every_n_epochs" not in said  # cadences follow from the length
    assert "24 training images, batches of 16; 1 epoch of 1 step, 1 in all" in said
    assert "Only 1 optimizer step:" in said
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert saved["data"]["batch_size"] == 16
    assert saved["optim"]["warmup_epochs"] == 0.2  # a fifth of one epoch


def test_a_try_out_is_not_told_that_it_is_short(train, said):
    for words, told in ((["--fast"], False), ([], True)):
        code, _ = train(f"run{told}", *words, data__batch_size=..., trainer__max_epochs=1)
        assert code == 0
        assert any("1 in all." in line for line in said)
        assert any("too few to train" in line for line in said) is told
        said.clear()
