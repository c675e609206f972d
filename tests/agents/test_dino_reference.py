"""A run against algorithm 1 of the paper and the official training step, written out plainly."""

import copy
import math

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from agents.build import build_agent, build_data
from agents.sources import build_source
from config.hparams import Hparams
from config.settings_tree import update
from config.yaml_files import read_yaml
from tests.agents.test_barlow_twins import difference
from tests.conftest import weights

SETTINGS = {
    "task": "dino",
    "trainer__precision": "64-true",
    "optim__lr": 2e-3,
    "optim__warmup_epochs": 0.67,  # two of six steps
    "optim__weight_decay": 0.04,
    "optim__final_weight_decay": 0.4,
    "dino__norm_last_layer": "false",
    "dino__freeze_last_layer_steps": 2,
    "dino__head_batch_norm": "false",
    "dino__clip_grad": 0.05,
    "dino__momentum_teacher": 0.8,
    "dino__warmup_teacher_temp": 0.04,
    "dino__teacher_temp": 0.07,
    "dino__warmup_teacher_temp_steps": 3,
}
STEPS, WARMUP = 6, 3  # warm-up: two steps, rounded up by the epoch's three


def cosine(start, end, step, total):
    return end + (start - end) * (1 + math.cos(math.pi * step / total)) / 2


def forward(net, views):
    return [net.head(net.backbone(view).pooled) for view in views]


def test_a_run_is_what_the_paper_says(train):
    code, folder = train("run", **SETTINGS)
    assert code == 0
    hparams = update(Hparams(), read_yaml(folder / "hparams.yaml"), "run")
    pl.seed_everything(hparams.run.seed, verbose=False)
    source = build_source(hparams)
    data = build_data(hparams, source)
    data.setup("fit")
    agent = build_agent(hparams, source).double()
    student, teacher = agent.student, copy.deepcopy(agent.student)
    center = torch.zeros(1, 24, dtype=torch.float64)
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}])

    step = 0
    for _ in range(2):
        loader = data.loading.loader(data.train_set, first_batch=lambda: step)  # noqa: B023
        for batch in list(loader):
            views = [chunks[0] for chunks in batch.views]
            warm = math.ceil(0.67 * 3)
            lr = (
                (step + 1) / warm
                if step < warm
                else cosine(1, 0.001, step + 1 - warm, STEPS - warm)
            )
            optimizer.param_groups[0]["weight_decay"] = cosine(0.04, 0.4, step, STEPS)
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * lr
            temperature = 0.04 + 0.03 * min(1, step / WARMUP)

            with torch.no_grad():
                t = forward(teacher, views[:2])
            s = forward(student, views)
            losses = []
            for i, teaching in enumerate(t):
                target = F.softmax((teaching - center) / temperature, dim=-1)
                for j, learning in enumerate(s):
                    if i != j:
                        log_q = F.log_softmax(learning / 0.1, dim=-1)
                        losses.append(-(target * log_q).sum(-1).mean())
            optimizer.zero_grad()
            (sum(losses) / len(losses)).backward()
            for parameter in student.parameters():
                norm = parameter.grad.norm()
                if norm > 0.05:
                    parameter.grad *= 0.05 / (norm + 1e-6)
            if step < 2:
                for parameter in student.head.last_layer.parameters():
                    parameter.grad = None
            optimizer.step()
            momentum = cosine(0.8, 1.0, step, STEPS)
            with torch.no_grad():
                for p_t, p_s in zip(teacher.parameters(), student.parameters(), strict=True):
                    p_t.mul_(momentum).add_((1 - momentum) * p_s)
            center = 0.9 * center + 0.1 * torch.cat(t).mean(0, keepdim=True)
            step += 1

    expected = {
        **{f"student.{key}": value for key, value in student.state_dict().items()},
        **{f"teacher.{key}": value for key, value in teacher.state_dict().items()},
        "center.value": center,
    }
    found = weights(folder)
    assert found.keys() == expected.keys()
    assert step == STEPS
    # Not 1e-9: timm interpolates the positions of local crops in float32.
    assert difference(found, expected) < 1e-6
