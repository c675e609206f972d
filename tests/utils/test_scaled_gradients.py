"""Gradients that a scaler has multiplied are divided again before anything looks at them."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from agents.optimizers import StepSchedule
from tests.conftest import float16_trainer
from utils.console import quiet_libraries
from utils.optim import adamw

SCALE = 256.0


class Regression(pl.LightningModule):
    """A layer whose optimizer is made as if its parameters were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.norms: list[float] = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", True)
            groups = [{"params": list(self.parameters()), "lr": 1e-2, "weight_decay": 0.1}]
            optimizer = adamw(groups)
        schedule = {"scheduler": StepSchedule(optimizer, lambda step: 1.0), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_before_optimizer_step(self, optimizer):
        gradients = [p.grad for p in self.parameters()]
        self.norms.append(float(nn.utils.get_total_norm(gradients)))


def fitted(scaler, tmp_path):
    torch.manual_seed(0)
    module, data = Regression(), torch.randn(24, 4)
    trainer = float16_trainer(scaler, tmp_path, max_epochs=2, gradient_clip_val=1.0)
    trainer.fit(module, DataLoader(data, batch_size=8))
    return module, trainer


def test_a_fused_optimizer_is_clipped_and_measured_on_what_the_loss_gave(tmp_path):
    plain, _ = fitted(torch.amp.GradScaler("cpu", enabled=False), tmp_path)
    scaled, trainer = fitted(torch.amp.GradScaler("cpu", init_scale=SCALE), tmp_path)
    assert trainer.optimizers[0].param_groups[0]["fused"]
    assert scaled.norms == pytest.approx(plain.norms, rel=1e-2)  # half precision
    for one, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_first_steps_that_overflow_are_no_mistake_of_the_schedule(tmp_path, recwarn):
    quiet_libraries()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    fitted(scaler, tmp_path)
    assert scaler.get_scale() < 2.0**127  # they did
    assert not any("lr_scheduler" in str(each.message) for each in recwarn)


def test_fused_steps_are_those_of_the_plain_optimizer():
    torch.manual_seed(0)
    plain = nn.Linear(5, 3)
    fused = nn.Linear(5, 3)
    fused.load_state_dict(plain.state_dict())

    def groups(module):
        return [{"params": list(module.parameters()), "lr": 1e-2, "weight_decay": 0.1}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        second = adamw(groups(fused))
    first = adamw(groups(plain))
    assert [o.param_groups[0]["fused"] for o in (first, second)] == [False, True]
    for seed in range(5):
        images = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
        for module, optimizer in ((plain, first), (fused, second)):
            optimizer.zero_grad()
            module(images).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(fused.weight, plain.weight, rtol=1e-5, atol=1e-7)
