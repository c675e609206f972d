"""Semantic segmentation: a head on a backbone, frozen or trained with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import MetricCollection

from agents.build import build_backbone, build_fusion, data_sets
from agents.optimizers import configure
from config import names
from config.hparams import Hparams
from datamodules.base import ImageSource, MaskedSource
from datamodules.loading import Loading
from datamodules.segmentation import SegmentationBatch, SegmentationDataModule
from datamodules.transforms.segmentation import FixedViews, Protocol, pad_to_multiple
from models.attention_supervision import attention_loss
from models.backbones.base import Backbone, Features
from models.backbones.stored import Stored, pack, unpack
from models.fusions.attention_fusion import AttentionFusion
from models.fusions.controls import Group
from models.heads.base import Head, Size, resize
from models.heads.weights import load_head
from models.inference import Inference
from models.losses.segmentation import SegmentationLoss
from models.measures.segmentation import metrics, occurs
from utils.console import console
from utils.palette import has_background


class Segmentation(LightningModule):
    """Labels every pixel with one of the data set's classes.

    Trained on crops; judged on whole images, by the protocol of the settings.

    Args:
        backbone: gives the maps; where it is frozen no graph is built through it.
        head: maps to logits.
        fusion: brings the backbone's attention to the head, if it is not empty.
        classes: names by label.
        hparams: groups `segmentation` and `optim`.

    Attributes:
        monitor, facts, trains: see `agents.trainer.Agent`; chosen on training images held out.
        confusion: the last counts of `val` and `test`, `(C, C)` int64, rows the truth.
    """

    monitor = ("val/miou", "max")
    trains = True

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        fusion: AttentionFusion,
        classes: Sequence[str],
        hparams: Hparams,
    ) -> None:
        super().__init__()
        self.settings = hparams
        self.backbone = backbone
        self.head = head
        self.fusion = fusion
        self.classes = tuple(classes)
        settings = hparams.segmentation
        losses = [names.LOSSES[name].load() for name in settings.loss]
        self.loss = SegmentationLoss(losses, settings.loss_weights or [1.0] * len(losses))
        self.val_metrics, self.test_metrics = metrics(len(classes)), metrics(len(classes))
        self.confusion: dict[str, Tensor] = {}
        self.lr = float(hparams.optim.lr)
        self.inference = Inference(
            settings.test_window,
            settings.test_stride,
            tuple(settings.test_scales),
            settings.test_flip,
        )
        self.facts = {"protocol": settings.protocol, "inference": str(self.inference)}
        # Logits are cut back to the image after padding, so that they stay aligned with it.
        self.multiple = max(backbone.patch_multiple, *backbone.map_strides)
        self._training_pass = (
            torch.compile(self._encode) if hparams.trainer.compile else self._encode
        )

    @classmethod
    def build(cls, hparams: Hparams, load: bool = True) -> Segmentation:
        """Builds the agent; `load` False leaves it at random, for a checkpoint to fill."""
        backbone = build_backbone(hparams, load)
        classes = masked(names.DATASETS[hparams.data.name].load(), hparams.data.name).classes
        settings = hparams.segmentation
        fusion, channels = build_fusion(hparams, backbone, len(classes))
        head: Head = names.HEADS[settings.head].load()(channels, backbone.map_strides, len(classes))
        if load and (report := load_head(head, settings.head_weights, hparams.run.dir)):
            console.info("%s", report)
        return cls(backbone, head, fusion, classes, hparams)

    @staticmethod
    def data(source: ImageSource, hparams: Hparams, loading: Loading) -> SegmentationDataModule:
        """Images with masks, a part of the training images held out for choices."""
        settings = hparams.data
        protocol = names.PROTOCOLS[hparams.segmentation.protocol].load()(settings.image_size)
        classes = masked(type(source), settings.name).classes
        if protocol.needs_background and not has_background(classes):
            raise ValueError(
                f"--segmentation.protocol {hparams.segmentation.protocol} counts void as "
                f"background, which {settings.name} does not have."
            )
        views = FixedViews(
            settings.image_size, protocol, settings.fixed_scales, settings.fixed_crops
        )
        return SegmentationDataModule(
            cast(MaskedSource, source),
            protocol,
            settings.image_size,
            loading,
            settings.val_fraction,
            views if settings.views == "fixed" else None,
            protocol_of_test(hparams),
        )

    def _encode(self, images: Tensor) -> Features:
        return self.fusion.features(self.backbone, images)

    def features(self, images: Tensor) -> Features:
        """Returns what the backbone says of images `(B, 3, H, W)` uint8 of any size, padded."""
        padded = pad_to_multiple(images, self.multiple)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            # Whole images have many sizes: each would be compiled anew.
            return (self._training_pass if self.training else self._encode)(padded)

    @torch.no_grad()
    def stored_features(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Returns the same as what can be kept, one for each image; see `FeatureCache`."""
        return pack(self.features(images.to(self.device)))

    def _features(self, images: Tensor, stored: Sequence[Stored]) -> Features:
        return unpack(stored, self.backbone) if stored else self.features(images)

    def _decode(self, features: Features, size: Size, stride: int = 1) -> Tensor:
        # (B, C, height / stride, width / stride) for images of `size` before padding.
        padded = [-(-side // self.multiple) * self.multiple // stride for side in size]
        logits = resize(self.fusion(self.head, features), (padded[0], padded[1]))
        return logits[..., : size[0] // stride, : size[1] // stride]

    def logits(self, images: Tensor) -> Tensor:
        """Returns `(B, C, H, W)` for images `(B, 3, H, W)` uint8 of any size."""
        features = self.fusion.controlled_batch(self.features(images))
        return self._decode(features, (images.shape[-2], images.shape[-1]))

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Loss of a batch of crops, with the `logits` `(B, C, H, W)` for callbacks."""
        images, stride = batch.images, self.settings.segmentation.loss_stride
        features = self.fusion.controlled_batch(self._features(images, batch.stored))
        logits = self._decode(features, (images.shape[-2], images.shape[-1]), stride)
        loss = self.loss(logits, batch.labels[:, stride // 2 :: stride, stride // 2 :: stride])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.log("train/lr", self.trainer.optimizers[0].param_groups[-1]["lr"])
        if self.settings.segmentation.attention_loss:
            loss = loss + self._attention_loss(features, batch.labels)
        return {"loss": loss, "logits": logits.detach()}

    def _attention_loss(self, features: Features, labels: Tensor) -> Tensor:
        settings = self.settings.segmentation
        terms = attention_loss(
            features,
            self.fusion,
            labels,
            self.classes,
            settings.attention_loss_terms,
            backbone_learns=not self.backbone.frozen,
        )
        warmup = settings.attention_loss_warmup_epochs * self.trainer.num_training_batches
        ramp = min(1.0, (self.trainer.global_step + 1) / max(1.0, warmup))
        self.log_dict({f"train/attention/{name}": term.detach() for name, term in terms.items()})
        return settings.attention_loss * ramp * torch.stack(list(terms.values())).sum()

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:
        """Judges held-out training images; see `judge`."""
        return self.judge(batch, "val")

    def test_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:
        """Judges test images; see `judge`."""
        return self.judge(batch, "test")

    def judge(self, batch: SegmentationBatch, split: str) -> dict[str, Any]:
        """Compares whole images with their labels, by the protocol.

        Returns:
            `loss`, the mean over the images, and `predictions`, one `(H, W)` uint8 per image.
        """
        measured = self._metrics(split)
        items = list(batch.items())
        losses, predictions = [], []
        found = self._each([image for image, _ in items], batch.stored, split)
        for logits, (_, labels) in zip(found, items, strict=True):
            upsampled = resize(logits[None].float(), (labels.shape[0], labels.shape[1]))
            losses.append(self.loss(upsampled, labels[None]))
            predictions.append(upsampled.argmax(1)[0].to(torch.uint8))
            measured.update(predictions[-1][None].int(), labels[None].int())
        loss = torch.stack(losses).mean()
        self.log(f"{split}/loss", loss, batch_size=len(batch), sync_dist=True)
        return {"loss": loss, "predictions": predictions}

    def _each(self, images: Sequence[Tensor], stored: Sequence[Stored], split: str) -> list[Tensor]:
        # Images of one size pass together; padding them to a common one would change the result.
        by_size: dict[torch.Size, list[int]] = {}
        for position, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(position)
        stacks = [
            (where, torch.stack([images[position] for position in where]))
            for where in by_size.values()
        ]
        found: dict[int, Tensor] = {}
        if split == "test" and self.inference != Inference():
            for where, stack in stacks:
                found |= dict(zip(where, self.inference(self.logits, stack), strict=True))
            return [found[position] for position in range(len(images))]
        groups: list[Group] = [
            (where, self._features(stack, [stored[position] for position in where if stored]))
            for where, stack in stacks
        ]
        for (where, features), (_, stack) in zip(
            self.fusion.controlled(groups), stacks, strict=True
        ):
            logits = self._decode(features, (stack.shape[-2], stack.shape[-1]))
            found |= dict(zip(where, logits, strict=True))
        return [found[position] for position in range(len(images))]

    def on_train_epoch_end(self) -> None:
        """Logs what the fusions have learnt."""
        self.log_dict({f"fusion/{name}": value for name, value in self.fusion.learnt().items()})

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the held-out images."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of the test images, every class among them."""
        self._report("test")

    def _metrics(self, split: str) -> MetricCollection:
        return self.val_metrics if split == "val" else self.test_metrics

    def _report(self, split: str) -> None:
        measured = self._metrics(split)
        found = measured.compute()
        measured.reset()
        confusion, by_class = found.pop("confusion"), found.pop("iou")
        self.confusion[split] = confusion.cpu()
        self.log_dict({f"{split}/{name}": value for name, value in found.items()})
        if split == "test":
            self.log_dict(
                {
                    f"test/iou/{name}": value
                    for name, value, there in zip(
                        self.classes, by_class, occurs(confusion), strict=True
                    )
                    if there
                }
            )

    def configure_optimizers(self) -> Any:
        """Optimizer and stepwise schedule; frozen parameters are left out."""
        settings = self.settings.segmentation
        factor = settings.head_lr_multiplier
        factors = {
            self.fusion.scalars(): factor * settings.fusion_lr_multiplier,
            self.backbone: 1.0,
            self.fusion: factor,
            self.head: factor,
        }
        return configure(self, factors, self.settings.optim, self.lr)

    def in_words(self, summary: Mapping[str, Any]) -> list[str]:
        """Says what the final numbers mean."""
        if "test/miou" not in summary:
            return ["The run did not get as far as the test."]
        by_class = sorted(
            (
                (summary[f"test/iou/{name}"], name)
                for name in self.classes
                if f"test/iou/{name}" in summary
            ),
            reverse=True,
        )
        pixels = int(self.confusion["test"].sum())
        lines = [
            f"Test mIoU {summary['test/miou']:.3f} ({self.settings.segmentation.protocol}), mean "
            f"of {len(by_class)} classes over {pixels / 1e6:.1f} M pixels; pixel accuracy "
            f"{summary['test/accuracy']:.3f}.",
            "Best:  " + ", ".join(f"{name} {value:.2f}" for value, name in by_class[:4]),
            "Worst: " + ", ".join(f"{name} {value:.2f}" for value, name in by_class[:-5:-1]),
        ]
        if absent := len(self.classes) - len(by_class):
            lines.append(f"{absent} classes neither occur nor are predicted: left out of the mean.")
        return lines


def protocol_of_test(hparams: Hparams) -> Protocol:
    """Returns how test images are resized and judged; all their views are made of the largest."""
    size = round(hparams.data.image_size * max(hparams.segmentation.test_scales))
    protocol: Protocol = names.PROTOCOLS[hparams.segmentation.protocol].load()(size)
    return protocol


def masked(source: type, name: str) -> type[MaskedSource]:
    """Returns `source` when its images have masks.

    Raises:
        ValueError: they have none.
    """
    if not issubclass(source, MaskedSource):
        raise ValueError(
            f"--data.name {name} has no masks; segmentation works with {data_sets(MaskedSource)}."
        )
    return source
