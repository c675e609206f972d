"""Measures during training how well features tell classes apart, without affecting training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.inspection import backbone_of, data_of, inspecting, pooled_features
from callbacks.readout import Readout
from datamodules.base import ImageDataModule
from datamodules.self_supervised import ViewsDataModule
from models.measures.knn import knn_accuracy

KNN, LINEAR = "val/knn_accuracy", "val/linear_accuracy"
_HELD_OUT = 0.2  # share of the labelled images that are queries
_PASSES, _BATCH, _LR = 20, 128, 1e-3


class OnlineProbe(Readout):
    """Logs `val/knn_accuracy` and `val/linear_accuracy` of the saved backbone.

    Both use labelled *training* images, some held out by a hash of their names: the test set is not
    touched. The linear classifier is part of the callback's state, not of the agent's; each
    measurement trains it further.

    Args:
        every_n_epochs: when to measure.
        num_images: number of labelled images.
        kind: `linear`, `knn` or `both`.
        k: number of neighbours.
        temperature: of their votes.
    """

    headlines: Mapping[str, str] = {
        KNN: "k-NN accuracy",
        LINEAR: "linear accuracy",
    }

    def __init__(
        self,
        every_n_epochs: int,
        num_images: int,
        kind: str,
        k: int = 20,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num_images = num_images
        self.kind = kind
        self.k = k
        self.temperature = temperature
        self.linear: nn.Linear | None = None
        self._saved: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The state of a readout, and the classifier."""
        linear = dict(self.linear.state_dict()) if self.linear else self._saved
        return {**super().state_dict(), "linear": linear}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state, and keeps the classifier until it is needed."""
        super().restore(state)
        self._saved = state.get("linear", {})

    def facts(self, data: ImageDataModule) -> dict[str, Any]:
        """See `Readout.facts`: also which images."""
        labelled = data.labelled if isinstance(data, ViewsDataModule) else None
        return {
            **super().facts(data),
            "callbacks.online_probe.num_images": self.num_images,
            "probe.k": self.k,
            "probe.temperature": self.temperature,
            "probe.data": [len(labelled), *labelled.classes] if labelled else None,
        }

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """See `Readout.measure`.

        Raises:
            ValueError: all images or none are held out, or features are not finite.
        """
        found = data_of(trainer).labelled_examples(self.num_images, _HELD_OUT)
        if found is None:
            self.say(
                "online_probe: these images have no classes, or all the same. To follow k-NN and "
                "linear accuracy set --probe.data.name (cifar10, image_folder) and "
                "--probe.data.root."
            )
            return {}
        (bank, labels), (queries, truth), classes = found
        if not (len(bank) and len(queries)):
            raise ValueError(
                f"online_probe: {len(queries)} of {len(bank) + len(queries)} labelled images are "
                "held out, expected some of both parts. Raise --callbacks.online_probe.num_images, "
                "or give more images."
            )
        backbone = backbone_of(pl_module)
        with inspecting(pl_module, trainer.precision_plugin):
            bank, queries = (pooled_features(backbone, images) for images in (bank, queries))
            if not (bank.isfinite().all() and queries.isfinite().all()):
                raise ValueError("online_probe: the features are not all finite numbers.")
            labels, truth = labels.to(bank.device), truth.to(bank.device)
            scores: dict[str, float] = {}
            if self.kind != "linear":
                scores[KNN] = knn_accuracy(
                    queries, truth, bank, labels, len(classes), self.k, self.temperature
                )
            if self.kind != "knn":
                accuracy = self._fit(bank, labels, queries, truth, len(classes))
                scores[LINEAR] = accuracy
        return scores

    def _fit(
        self, bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, num_classes: int
    ) -> float:
        mean, std = bank.mean(0), bank.std(0, correction=min(1, len(bank) - 1)).clamp_min(1e-6)
        bank, queries = (bank - mean) / std, (queries - mean) / std
        exactly = torch.autocast(bank.device.type, enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), exactly:
            if self.linear is None:
                # Not torch's default type, which is float64 in a run in double precision.
                self.linear = nn.Linear(bank.shape[1], num_classes, dtype=bank.dtype)
                if self._saved:
                    self.linear.load_state_dict(self._saved)
            linear = self.linear.to(bank.device)
            optimizer = torch.optim.AdamW(linear.parameters(), lr=_LR)
            order = torch.Generator().manual_seed(0)
            for _ in range(_PASSES):
                for rows in torch.randperm(len(bank), generator=order).split(_BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(linear(bank[rows]), labels[rows]).backward()
                    optimizer.step()
            return float((linear(queries).argmax(1) == truth).float().mean())
