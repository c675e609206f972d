"""Tuners return what they tried, and what they return is used."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.plugins import MixedPrecision

from agents import tuning
from agents.barlow_twins import BarlowTwins
from main import main
from models.backbones.vit import ViT
from tests.conftest import summary


@pytest.mark.parametrize(
    ("limit", "largest", "expected"),
    [
        (100, 256, 64),
        (64, 256, 64),
        (1000, 256, 256),
        (1000, 48, 48),
        (5, 256, 4),
        (2, 256, 2),
        (40, 6, 6),
    ],
)
def test_the_largest_value_that_was_tried_and_fitted(limit, largest, expected):
    tried = []

    def fits(value: int) -> bool:
        tried.append(value)
        return value <= limit

    found = tuning.largest_working(largest, fits)
    assert found == expected
    assert found in tried
    assert len(tried) == len(set(tried))


def test_nothing_fits():
    with pytest.raises(ValueError, match="Not even 2 images"):
        tuning.largest_working(256, lambda value: False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory of names"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert tuning.is_out_of_memory(error) == expected


def test_chunk_size_under_injected_out_of_memory_is_used_and_written(train, monkeypatch):
    original = ViT.forward
    seen = []

    def forward(self, images, attention=None):
        seen.append(len(images))
        if len(images) > 4:
            raise torch.OutOfMemoryError("injected")
        return original(self, images, attention)

    monkeypatch.setattr(ViT, "forward", forward)
    code, folder = train("tuned", trainer__tune_batch_size="true", trainer__max_epochs=1)
    assert code == 0
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())["trainer"]
    assert (saved["chunk_size"], saved["tune_batch_size"]) == (4, False)
    assert 8 in seen
    assert summary(folder)["steps"] == 3


def test_chunks_of_all_views_of_dino(train, monkeypatch):
    import agents.dino as agent

    seen, original = [], agent.DINO._pool

    def pool(self, images):
        seen.append(tuple(images.shape))
        if len(images) > 4:
            raise torch.OutOfMemoryError("injected")
        return original(self, images)

    monkeypatch.setattr(agent.DINO, "_pool", pool)
    code, folder = train(
        "tuned", task="dino", trainer__tune_batch_size="true", trainer__max_epochs=1
    )
    assert code == 0
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())["trainer"]
    assert saved["chunk_size"] == 4
    assert {shape[2] for shape in seen} == {32, 16}  # both resolutions were tried


def test_a_whole_batch_of_dino_that_fits_is_trained_as_it_was_tried(train):
    code, folder = train(
        "tuned", task="dino", trainer__tune_batch_size="true", trainer__max_epochs=1
    )
    assert code == 0
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())["trainer"]
    assert saved["chunk_size"] is None  # with a number one view would pass after the other


def test_another_error_is_not_swallowed(train, monkeypatch):
    import agents.barlow_twins as agent

    def broken(self, images):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(agent.BarlowTwins, "_pool", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train("tuned", trainer__tune_batch_size="true")


def test_on_the_cpu_available_memory_bounds_the_search(train, monkeypatch):
    monkeypatch.setattr(tuning, "available_mb", lambda: 0.0)
    monkeypatch.setattr(tuning, "_probe", lambda *_: 10.0)
    chunk = tuning.largest_working
    tried: list[int] = []

    def record(largest, fits):
        return chunk(largest, lambda value: bool(tried.append(value)) or fits(value))

    monkeypatch.setattr(tuning, "largest_working", record)
    code, _ = train("tuned", trainer__tune_batch_size="true")
    assert code == 2
    assert tried == [8, 4, 2]


def test_the_learning_rate_found_is_the_one_trained_with(train, monkeypatch):
    monkeypatch.setattr(tuning, "LR_STEPS", 30)
    code, folder = train(
        "tuned", trainer__tune_lr="true", optim__warmup_epochs=0, optim__schedule="constant"
    )
    assert code == 0
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert saved["trainer"]["tune_lr"] is False
    from utils.metrics_file import read_metrics

    used = read_metrics(folder / "metrics.csv")[0]["train/lr"]
    assert used == pytest.approx(saved["optim"]["lr"])
    assert used != pytest.approx(1e-3 * (8 / 256) ** 0.5)


def test_the_search_for_a_rate_validates_nothing(train, monkeypatch):
    monkeypatch.setattr(tuning, "LR_STEPS", 15)
    validated = []
    original = BarlowTwins.validation_step

    def counted(self, batch, batch_idx):
        validated.append(batch_idx)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(BarlowTwins, "validation_step", counted)
    short = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 1}
    assert train("tuned", trainer__tune_lr="true", **short)[0] == 0
    assert validated == [0]  # that of the run


def test_tuning_leaves_the_network_and_its_randomness_alone(train, monkeypatch):
    from tests.conftest import assert_same, weights

    _, plain = train("plain", backbone__drop_path=0.3, trainer__chunk_size=8)
    _, tuned = train("tuned", backbone__drop_path=0.3, trainer__tune_batch_size="true")
    assert_same(weights(tuned), weights(plain))


class _Exhausted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features):
        return features.clone()

    @staticmethod
    def backward(ctx, gradient):
        if len(gradient) > 4:
            raise torch.OutOfMemoryError("injected")
        return gradient


@pytest.mark.parametrize("task", ["barlow_twins", "dino"])
def test_memory_that_ends_in_the_backward_pass_is_found_out(train, monkeypatch, task):
    original = ViT.forward

    def forward(self, images, attention=None):
        features = original(self, images, attention)
        return replace(features, pooled=_Exhausted.apply(features.pooled))

    monkeypatch.setattr(ViT, "forward", forward)
    options = {"trainer__tune_batch_size": "true", "trainer__max_epochs": 1}
    code, folder = train("tuned", task=task, **options)
    assert code == 0
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["trainer"]["chunk_size"] == 4


@pytest.mark.parametrize(("used", "expected"), [(919.0, 256), (921.0, 2)])
def test_a_gpu_keeps_a_reserve(monkeypatch, used, expected):
    """1,000 MiB are free; a chunk of more than two needs as much as is said."""
    fits = {"chunk": 0}

    class Trainer:
        precision_plugin = None

        def fit(self, agent, batches):
            (batch, _) = batches
            fits["chunk"] = max(len(part) for part in batch.views[0])

    monkeypatch.setattr(tuning, "free_mb", lambda device: 1000.0)
    monkeypatch.setattr(tuning, "reset_peak", lambda device: None)
    monkeypatch.setattr(tuning, "peak_mb", lambda _: used if fits["chunk"] > 2 else 10.0)
    agent, gpu = torch.nn.Linear(1, 1), torch.device("cuda")
    found = tuning.tune_chunk_size(agent, lambda **_: Trainer(), 256, [8], gpu)
    assert found == expected


def test_first_steps_that_overflow_are_measured_with_what_the_optimizer_keeps(tmp_path):
    optimizers = []

    class Regression(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3 * 8 * 8, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(torch.cat(batch.views[0]).flatten(1) / 255).square().mean()

        def configure_optimizers(self):
            optimizers.append(torch.optim.AdamW(self.parameters()))
            return optimizers[-1]

    def make_trainer(**settings):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return pl.Trainer(accelerator="cpu", plugins=plugins, **quiet, **settings)

    agent = Regression()
    assert tuning.tune_chunk_size(agent, make_trainer, 8, [8], torch.device("cpu")) == 8
    (optimizer,) = optimizers
    assert all("exp_avg_sq" in state for state in optimizer.state.values())
    assert len(optimizer.state) == 2


@pytest.fixture
def compiled(monkeypatch):
    """Passes that were compiled: bound to what they were made of, whatever copies that."""
    made = []

    def keep(function, **options):
        made.append(function)
        return lambda *arguments: function(*arguments)

    monkeypatch.setattr(torch, "compile", keep)
    return made


@pytest.mark.parametrize("task", ["barlow_twins", "lejepa", "dino", "dino_twins", "segmentation"])
def test_a_compiled_copy_is_tuned_like_a_plain_one(train, monkeypatch, compiled, task):
    monkeypatch.setattr(tuning, "LR_STEPS", 15)
    found = []
    for compiles in ("false", "true"):
        code, folder = train(
            compiles,
            task=task,
            trainer__compile=compiles,
            trainer__tune_lr="true",
            trainer__max_epochs=1,
        )
        assert code == 0
        found.append(yaml.safe_load((folder / "hparams.yaml").read_text())["optim"]["lr"])
    assert found[0] == found[1]
    assert len(compiled) == 2  # the copy's, and that of the run


@pytest.mark.parametrize(("limit", "chunk"), [(4, 4), (100, None)])
def test_chunks_that_make_compiling_moot_say_so(train, monkeypatch, compiled, capsys, limit, chunk):
    original = ViT.forward

    def forward(self, images, attention=None):
        if len(images) > limit:
            raise torch.OutOfMemoryError("injected")
        return original(self, images, attention)

    monkeypatch.setattr(ViT, "forward", forward)
    shared = {"trainer__compile": "true", "trainer__max_epochs": 1}
    code, folder = train("tuned", trainer__tune_batch_size="true", **shared)
    assert code == 0
    saved = yaml.safe_load((folder / "hparams.yaml").read_text())["trainer"]
    assert (saved["compile"], saved["chunk_size"]) == (chunk is None, chunk)
    assert ("uncompiled" in capsys.readouterr().err) is (chunk is not None)
    # What was written down can be gone on from.
    assert main(["--run.resume", "tuned", "--run.dir", str(folder.parent)]) == 0
