"""Semantic segmentation: a head on a backbone, frozen or trained with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from agents.base import Agent
from agents.feature_cache import cache_features, caches_features
from agents.optimizers import configure
from agents.patch_memory import memory_in_words, remember
from agents.protocols import build_protocol, inference_of_test, protocol_of_test
from agents.segmentation_loss import build_loss, weigh_classes
from agents.segmenter import build_segmenter
from agents.sources import masked
from callbacks.epochs import steps_an_epoch
from callbacks.inspection import data_of
from callbacks.step_outputs import CropOutputs, EvaluationOutputs, step_result
from config.hparams import Hparams
from datamodules.base import ImageDataModule
from datamodules.loading import Loading
from datamodules.masked_images import SegmentationBatch
from datamodules.segmentation import SegmentationDataModule
from datamodules.sources import ImageSource, MaskedSource
from datamodules.transforms.segmentation import FixedViews
from models.attention_supervision import attention_loss
from models.backbones.base import Backbone, Features
from models.fusions.attention_fusion import Looks
from models.heads.base import size_of
from models.heads.knn import KNN
from models.heads.weights import load_head
from models.inference import WHOLE, Inference
from models.measures.dense_knn import PatchMemory
from models.measures.segmentation import metrics, occurs
from models.segmenter import Segmenter, labels_of, pad_labels
from utils.console import console
from utils.logging import log_after_step
from utils.palette import has_background
from utils.run_checkpoints import read_run_checkpoint
from utils.text import best_and_worst, count, in_units


class Segmentation(Agent):
    """Labels every pixel with one of the data set's classes.

    Trained on crops; judged on whole images, by the protocol of the settings. A head that remembers
    training images instead (`knn`) is filled before the first image is judged.

    Args:
        network: is trained, except for a frozen backbone.
        images: name their classes, and give each a colour.
        hparams: groups `segmentation` and `optim`.

    Attributes:
        classes: names by label.
        colours: of labels in pictures, `(256, 3)`.
        inference: how test images are seen.
        confusion: the last counts of `val` and `test`, `(C, C)` int64, rows the truth.
    """

    monitor = ("val/miou", "max")  # on held-out training images
    validates_untrained = True

    def __init__(self, network: Segmenter, images: MaskedSource, hparams: Hparams) -> None:
        super().__init__()
        self.settings = hparams
        self.network = network
        self.classes, self.colours = tuple(images.classes), images.colours
        settings = hparams.segmentation
        self.loss = build_loss(settings)
        self.training_loss = self.loss
        self.metrics = nn.ModuleDict(
            {split: metrics(len(self.classes)) for split in ("val", "test")}
        )
        self.confusion: dict[str, Tensor] = {}
        self.trains = self.memory is None
        self.inference = inference_of_test(settings)
        self.facts = {"protocol": settings.protocol, "inference": str(self.inference)}

    @classmethod
    def build(cls, hparams: Hparams, backbone: Backbone, source: ImageSource) -> Segmentation:
        """See `Agent.build`."""
        images = masked(source, f"--data.name {hparams.data.name}")
        return cls(build_segmenter(hparams, backbone, len(images.classes)), images, hparams)

    def load_weights(self) -> None:
        """See `Agent.load_weights`: those of the head."""
        weights = self.settings.segmentation.head_weights
        if report := load_head(self.network.head, weights, self.settings.run.dir):
            console.info("%s", report)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> SegmentationDataModule:
        """Images with masks, a part of the training images held out to choose the checkpoint."""
        settings = hparams.data
        size, protocol = int(settings.image_size), build_protocol(hparams)
        images = masked(source, f"--data.name {settings.name}")
        images.propose_classes()
        if protocol.needs_background and not has_background(images.classes):
            raise ValueError(
                f"--segmentation.protocol {hparams.segmentation.protocol} counts void as "
                f"background, which {settings.name} does not have."
            )
        views = FixedViews(size, protocol, settings.fixed_scales, settings.fixed_crops)
        return SegmentationDataModule(
            images,
            protocol,
            size,
            loading,
            settings.val_fraction,
            views if settings.views == "fixed" else None,
            protocol_of_test(hparams),
        )

    def prepare(self, data: ImageDataModule, device: torch.device, checkpoint: Path | None) -> None:
        """See `Agent.prepare`: weighs classes, and caches features that never change."""
        if self.backbone.frozen:
            console.info("The backbone is frozen: readouts and pictures of it are made once.")
        images, settings = cast(SegmentationDataModule, data), self.settings.segmentation
        weights = weigh_classes(settings, self.classes, images)
        if weights is not None:
            self.training_loss = build_loss(settings, weights)
        if not caches_features(self.network, self.settings):
            return
        if checkpoint is not None:
            self.load_state_dict(read_run_checkpoint(checkpoint)["state_dict"])
        whole = self.inference == WHOLE
        cache_features(self.network, images, self.settings, self.classes, whole, device)

    def passes(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """See `Agent.passes`: none if features are cached."""
        return () if caches_features(self.network, self.settings) else sizes

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:
        """Loss of a batch of crops, whose logits callbacks see."""
        network, images = self.network, batch.images
        stride = self.settings.segmentation.loss_stride
        encoded = network.encode(images, batch.stored)
        features = network.fusion.controlled_batch(encoded)
        looks = None
        if self.settings.segmentation.attention_loss:
            logits, looks = network.fusion.looking(network.head, features)
        else:
            logits = network.fusion(network.head, features)
        logits = network.of_pixels(logits, size_of(images), stride)
        loss = self.training_loss(
            logits, batch.labels[:, stride // 2 :: stride, stride // 2 :: stride]
        )
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.log("train/lr", self.trainer.optimizers[0].param_groups[-1]["lr"])
        if looks is not None:
            # On the backbone's own attention, even if a control shows the fusions another.
            loss = loss + self._attention_loss(encoded, looks, batch.labels)
        return step_result(loss, CropOutputs(logits.detach()))

    def _attention_loss(self, features: Features, looks: Looks, labels: Tensor) -> Tensor:
        settings = self.settings.segmentation
        terms = attention_loss(
            features,
            looks,
            pad_labels(labels, self.network.multiple),
            self.classes,
            settings.attention_loss_terms,
            backbone_learns=not self.backbone.frozen,
        )
        warmup = settings.attention_loss_warmup_epochs * steps_an_epoch(self.trainer)
        ramp = min(1.0, (self.trainer.global_step + 1) / max(1.0, warmup))
        self.log_dict({f"train/attention/{name}": term.detach() for name, term in terms.items()})
        return settings.attention_loss * ramp * torch.stack(list(terms.values())).sum()

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:
        """Evaluates held-out training images, each seen whole and once; see `test_step`."""
        return self._evaluate(batch, "val", WHOLE)

    def test_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:
        """Compares whole images with their labels, by the protocol; callbacks see predictions."""
        return self._evaluate(batch, "test", self.inference)

    def _evaluate(
        self, batch: SegmentationBatch, split: str, inference: Inference
    ) -> dict[str, Any]:
        if self.memory is not None and not len(self.memory):
            self._remember(self.memory)
        measured: Any = self.metrics[split]
        images, masks = zip(*batch.items(), strict=True)
        sizes = [(mask.shape[0], mask.shape[1]) for mask in masks]
        found = self.network.logits_at(images, sizes, batch.stored, inference)
        losses, predictions = [], []
        for logits, labels in zip(found, masks, strict=True):
            if self.trains:  # k-NN gives class shares, not logits
                losses.append(self.loss(logits[None], labels[None]))
            predictions.append(labels_of(logits))
            measured.update(predictions[-1][None].int(), labels[None].int())
        loss = torch.stack(losses).mean() if losses else torch.zeros(())
        if losses:
            self.log(f"{split}/loss", loss, batch_size=len(batch), sync_dist=True)
        return step_result(loss, EvaluationOutputs(predictions))

    def _remember(self, memory: PatchMemory) -> None:
        data = cast(SegmentationDataModule, data_of(self.trainer))
        with torch.inference_mode(False):
            remember(self.network, memory, data.whole_training_images())
        console.info(
            "%d patches of %d training images remembered", len(memory), len(data.train_files)
        )

    def on_train_epoch_end(self) -> None:
        """Logs what the fusions have learnt, before the epoch's checkpoint."""
        learnt = {f"fusion/{name}": value for name, value in self.network.fusion.learnt().items()}
        log_after_step(self.trainer, learnt)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the held-out images."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of the test images, including the IoU of every class."""
        self._report("test")

    def _report(self, split: str) -> None:
        measured: Any = self.metrics[split]
        found = measured.compute()
        measured.reset()
        confusion, by_class = found.pop("confusion"), found.pop("iou")
        self.confusion[split] = confusion.cpu()
        if split == "test":
            each = zip(self.classes, by_class, occurs(confusion), strict=True)
            found |= {f"iou/{name}": value for name, value, there in each if there}
        self.log_dict({f"{split}/{name}": value for name, value in found.items()})

    def configure_optimizers(self) -> Any:
        """Optimizer and stepwise schedule; frozen parameters are left out."""
        network, settings = self.network, self.settings.segmentation
        factor = settings.head_lr_multiplier
        factors = {
            network.fusion.scalars(): factor * settings.fusion_lr_multiplier,
            network.backbone: 1.0,
            network.fusion: factor,
            network.head: factor,
        }
        return configure(self, factors)

    def compile_training_pass(self) -> None:
        """See `Agent`."""
        self.network.compile_training_pass()

    def in_words(self, summary: Mapping[str, Any]) -> list[str]:
        """Says what the final numbers mean."""
        # A test that was not completed leaves the numbers of one before it, of the same weights.
        if "test/miou" not in summary or "test" not in self.confusion:
            return ["The run did not get as far as the test."]
        known = {name: summary.get(f"test/iou/{name}") for name in self.classes}
        by_class = sorted(
            ((iou, name) for name, iou in known.items() if iou is not None), reverse=True
        )
        pixels = int(self.confusion["test"].sum())
        lines = [
            f"Test mIoU {summary['test/miou']:.3f} ({self.settings.segmentation.protocol}), mean "
            f"of {count(len(by_class), 'class')} over {in_units(pixels)}pixels; pixel accuracy "
            f"{summary['test/accuracy']:.3f}.",
            *best_and_worst([(name, value) for value, name in by_class]),
        ]
        if self.memory is not None:
            lines.append(memory_in_words(self.memory, summary.get("val/miou")))
        if absent := len(self.classes) - len(by_class):
            left_out = f"{absent} of {len(self.classes)} classes"
            lines.append(f"Left out of the mean, neither present nor predicted: {left_out}.")
        return lines

    @property
    def backbone(self) -> Backbone:  # type: ignore[override]
        """The network's backbone, which callbacks inspect."""
        return self.network.backbone

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The network's modules by name."""
        return dict(self.network.named_children())

    @property
    def memory(self) -> PatchMemory | None:
        """The training patches that the head remembers; None: it is trained."""
        return self.network.head.memory if isinstance(self.network.head, KNN) else None

    # A checkpoint holds the network alone, and its keys do not depend on where the agent keeps it.
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the network's: `backbone.…`, `head.…`, `fusion.…`."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads the network."""
        return self.network.load_state_dict(state_dict, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the names of the classes: a user may change their order."""
        checkpoint["classes"] = list(self.classes)
