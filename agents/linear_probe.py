"""Measures how well frozen features tell classes apart: by a linear classifier and by k-NN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.base import Agent
from agents.optimizers import configure
from agents.sources import labelled
from callbacks.inspection import data_of
from config.hparams import Hparams
from datamodules.linear_probe import LabelledDataModule, ProbeBatch
from datamodules.loading import BatchLoader, Loading
from datamodules.sources import ImageSource
from models.backbones.base import Backbone, Features
from models.measures.counting import Confusion
from models.measures.knn import knn_accuracy
from models.precision import at_least_float32
from utils.console import console
from utils.distributed import gather_rows
from utils.text import count

_MEASURED = ("val", "test", "test_last")


class LinearProbe(Agent):
    """A linear layer on standardised features of a frozen backbone in eval mode.

    The features of every image and its mirror image are computed once. The held-out part of the
    training images chooses the checkpoint; the test images are judged once, with the best and with
    the last classifier. k-NN needs no training: its bank is all training images, its queries the
    test images.

    Args:
        backbone: frozen here.
        classes: names by label.
        hparams: groups `probe`, `optim`.

    Attributes:
        confusion: the last counts of `val` and `test`, `(C, C)` int64, rows the truth.
        majority: share of the test images that are of their most frequent class.
    """

    monitor = ("val/linear_accuracy", "max")

    def __init__(self, backbone: Backbone, classes: Sequence[str], hparams: Hparams) -> None:
        super().__init__()
        backbone.freeze()
        self.settings = hparams
        self.backbone = backbone
        self.classes = tuple(classes)
        self.facts = {"features": hparams.probe.features}
        self.trains = hparams.probe.kind != "knn"
        width = backbone.embed_dim
        if hparams.probe.features == "cls":
            width = sum(backbone.map_channels)
        # Standardised (as in MAE's linear probing), so that one learning rate serves all backbones.
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(classes))
        )
        self.counts = nn.ModuleDict(
            {name: Confusion(len(classes), validate_args=False) for name in _MEASURED}
        )
        self.confusion: dict[str, Tensor] = {}
        self.majority = 0.0
        self.neighbours = hparams.probe.k  # fewer if the bank is smaller
        self._features: dict[str, Tensor] = {}
        # In a list, so that it is no submodule and not in checkpoints.
        self._last: list[nn.Module] = []

    @classmethod
    def build(cls, hparams: Hparams, backbone: Backbone, source: ImageSource) -> LinearProbe:
        """See `Agent.build`.

        Raises:
            ValueError: the images have no classes, or all the same.
        """
        classes, _ = labelled(source, f"--data.name {hparams.data.name}").labels("train")
        if len(classes) < 2:
            raise ValueError(
                f"All images in {source.root} are of one class, {classes[0]}: a probe tells "
                "classes apart, and needs two."
            )
        return cls(backbone, classes, hparams)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> LabelledDataModule:
        """Images with classes, a part of the training images held out to choose the checkpoint."""
        data = hparams.data
        return LabelledDataModule(
            labelled(source, f"--data.name {data.name}"),
            int(data.image_size),
            loading,
            data.val_fraction,
            hparams.probe.num_images,
        )

    def passes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """See `Agent.passes`: none, as features are computed once."""
        return ()

    def on_fit_start(self) -> None:
        """Computes the features of the training images, whose time is not that of a step."""
        self.features("train")

    def training_step(self, batch: ProbeBatch, batch_idx: int) -> dict[str, Tensor]:
        """Cross-entropy of a batch."""
        logits = self.classifier(self.features("train")[batch.indices, batch.mirrored])
        loss = F.cross_entropy(logits, batch.labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return {"loss": loss}

    def validation_step(self, batch: ProbeBatch, batch_idx: int) -> dict[str, Tensor]:
        """Evaluates the classifier on held-out training images."""
        return {"loss": self._judge(batch, "val")}

    def test_step(self, batch: ProbeBatch, batch_idx: int) -> None:
        """Evaluates the best classifier and the last one on test images."""
        if self.trains:
            self._judge(batch, "test")
        for last in self._last:
            self._count("test_last", self._logits(batch, "test", last), batch)

    def _judge(self, batch: ProbeBatch, split: str) -> Tensor:
        logits = self._logits(batch, split, self.classifier)
        self._count(split, logits, batch)
        loss = F.cross_entropy(logits, batch.labels)
        self.log(f"{split}/loss", loss, batch_size=len(batch), sync_dist=True)
        return loss

    def _logits(self, batch: ProbeBatch, split: str, classifier: nn.Module) -> Tensor:
        logits: Tensor = classifier(self.features(split)[batch.indices, 0])
        return logits

    def _count(self, name: str, logits: Tensor, batch: ProbeBatch) -> None:
        counts: Any = self.counts[name]
        counts.update(logits, batch.labels)

    def features(self, split: str) -> Tensor:
        """Returns the features of every image of a split and of its mirror image, `(N, 2, D)`.

        Computed on first use; each process computes its share.
        """
        if split not in self._features:
            images = count(len(self._data.splits[split]), f"{split} image")
            console.info("computing the features of %s, once", images)
            self._features[split] = self._extract(self._data.images(split))
        return self._features[split]

    def _extract(self, loader: BatchLoader) -> Tensor:
        rows: list[Tensor] = []
        places: list[Tensor] = []
        with torch.inference_mode(False), torch.no_grad():
            for images, positions, problems in loader:
                if problems:
                    self._data.refuse_unreadable()
                images = images.to(self.device)
                both = [self._describe(self.backbone(i)) for i in (images, images.flip(-1))]
                rows.extend(at_least_float32(torch.stack(both, dim=1)))
                places.append(positions.to(self.device))
            features, order = gather_rows(torch.cat(rows)), gather_rows(torch.cat(places))
            return features[order.argsort()]

    def _describe(self, features: Features) -> Tensor:
        if self.settings.probe.features == "pooled":
            return features.pooled
        if not self.backbone.has_cls:
            raise ValueError("--probe.features cls: this backbone has no CLS token. Use pooled.")
        return torch.cat([prefix[:, 0] for prefix in features.prefix], dim=1)

    def on_fit_end(self) -> None:
        """Keeps the last classifier, also if only the test was left to do."""
        self._last = [deepcopy(self.classifier).eval()]

    def on_test_start(self) -> None:
        """Moves the last classifier to the device; the best one has been loaded by now."""
        for last in self._last:
            last.to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracy on held-out images."""
        self.confusion["val"] = self._report("val", "val/linear_accuracy")

    def on_test_epoch_end(self) -> None:
        """Logs the accuracies on test images."""
        labels = self._data.splits["test"].labels
        self.majority = max(Counter(labels).values()) / len(labels)
        if self.trains:
            self.confusion["test"] = self._report("test", "test/linear_accuracy")
        if self._last:
            self._report("test_last", "test/linear_accuracy_last")
        if self.settings.probe.kind != "linear":
            self.log("test/knn_accuracy", self._knn())

    def _report(self, name: str, key: str) -> Tensor:
        counts: Any = self.counts[name]
        confusion: Tensor = counts.compute()
        counts.reset()
        self.log(key, confusion.trace() / confusion.sum())
        return confusion.cpu()

    def _knn(self) -> float:
        splits = self._data.splits
        bank = [part for part in ("train", "val") if len(splits[part])]
        labels = [torch.tensor(splits[part].labels) for part in bank]
        features = torch.cat([self.features(part)[:, 0] for part in bank])
        self.neighbours = min(self.neighbours, len(features))
        return knn_accuracy(
            self.features("test")[:, 0],
            torch.tensor(splits["test"].labels, device=self.device),
            features,
            torch.cat(labels).to(self.device),
            len(self.classes),
            self.neighbours,
            self.settings.probe.temperature,
        )

    def configure_optimizers(self) -> Any:
        """Optimizer and stepwise schedule of the classifier."""
        return configure(self, {self.classifier: 1.0})

    def in_words(self, summary: Mapping[str, Any]) -> list[str]:
        """Says what the final numbers mean."""
        lines = []
        if "test/linear_accuracy" in summary:
            last = summary.get("test/linear_accuracy_last")
            chosen = "checkpoint that the held-out images chose"
            if "val/linear_accuracy" not in summary:
                chosen, last = "last checkpoint: there was no validation to choose one", None
            lines.append(
                f"Linear probe: test accuracy {summary['test/linear_accuracy']:.1%} with the "
                f"{chosen}" + (f", {last:.1%} with the last." if last is not None else ".")
            )
        if "test/knn_accuracy" in summary:
            lines.append(
                f"k-NN (k = {self.neighbours}, T = {self.settings.probe.temperature}): test "
                f"accuracy {summary['test/knn_accuracy']:.1%}."
            )
        if not lines:
            return ["The run did not get as far as the test."]
        guessing = f"Guessing would give {1 / len(self.classes):.1%}"
        if self.majority > 1 / len(self.classes):
            guessing += f", the most frequent class for all images {self.majority:.1%}"
        return [*lines, f"{guessing}."]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the names of the classes: other classes may have the same numbers."""
        checkpoint["classes"] = list(self.classes)

    @property
    def _data(self) -> LabelledDataModule:
        return cast(LabelledDataModule, data_of(self.trainer))
