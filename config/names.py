"""Torch-free tables of everything that can be chosen by name.

`--help`, the checks of `config/validation.py` and the assembly in `agents/trainer.py` all read
these tables: adding a backbone, data set, task or callback is one new file and one line here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """Something chosen by name.

    Attributes:
        target: `module:attribute`, imported only when the part is built.
        settings: the leaves of its hparams group that this part reads; the others have no effect.
            Of a callback: leaves of other groups that it reads beside its own.
    """

    target: str
    settings: tuple[str, ...] = ()

    def load(self) -> Any:
        """Imports and returns the class or builder."""
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)


_COMMON = (
    "data",
    "backbone",
    "optim",
    "trainer",
    "logger",
    "callbacks.learning_curves",
    "callbacks.report",
)
_INSIDE = (
    "callbacks.attention_maps",
    "callbacks.attention_quality",
    "callbacks.effective_receptive_field",
    "callbacks.feature_maps",
    "callbacks.views",
)
_SELF_SUPERVISED = (
    *_INSIDE,
    "head_information",
    "probe",
    "callbacks.health",
    "callbacks.online_probe",
    "callbacks.embeddings",
)
# Every task names the hparams groups it reads, `task` and `run` aside.
TASKS: dict[str, Part] = {
    "barlow_twins": Part(
        "agents.barlow_twins:BarlowTwins",
        (
            *_COMMON,
            *_SELF_SUPERVISED,
            "barlow_twins",
            "callbacks.cross_correlation",
            "callbacks.early_stopping",
        ),
    ),
    "dino": Part("agents.dino:DINO", (*_COMMON, *_SELF_SUPERVISED, "dino")),
    "dino_twins": Part(
        "agents.dino_twins:DINOTwins",
        (*_COMMON, *_SELF_SUPERVISED, "dino_twins", "dino", "barlow_twins"),
    ),
    "linear_probe": Part(
        "agents.linear_probe:LinearProbe",
        (*_COMMON, "probe", "callbacks.confusion_matrix", "callbacks.early_stopping"),
    ),
    "segmentation": Part(
        "agents.segmentation:Segmentation",
        (
            *_COMMON,
            *_INSIDE,
            "segmentation",
            "callbacks.early_stopping",
            "callbacks.segmentation_predictions",
            "callbacks.class_iou",
            "callbacks.confusion_matrix",
            "callbacks.image_counts",
        ),
    ),
}


def reads(task: str, path: str) -> bool:
    """Whether a task reads the group that a dotted setting lies in."""
    group = path.partition(".")[0]
    return group in ("task", "run") or any(path.startswith(f"{g}.") for g in TASKS[task].settings)


# Leaves of shared groups that only some tasks read.
_PRETRAINING = ("barlow_twins", "dino", "dino_twins")
_TRAIN_BACKBONES = (*_PRETRAINING, "segmentation")
TASK_ONLY: dict[str, tuple[str, ...]] = {
    "backbone.freeze": _TRAIN_BACKBONES,
    "backbone.unfreeze_last": _TRAIN_BACKBONES,
    "backbone.drop_path": _TRAIN_BACKBONES,
    "trainer.compile": _TRAIN_BACKBONES,
    "barlow_twins.scale": ("barlow_twins",),
    "data.blur": _PRETRAINING,
    "data.views": ("segmentation",),
    "data.fixed_scales": ("segmentation",),
    "data.fixed_crops": ("segmentation",),
    "data.feature_cache": ("segmentation",),
    "probe.data.name": _PRETRAINING,
    "probe.data.root": _PRETRAINING,
    "probe.features": ("linear_probe",),
    "optim.final_weight_decay": ("dino", "dino_twins"),
    "trainer.chunk_size": _PRETRAINING,
    "trainer.tune_batch_size": _PRETRAINING,
}

_VIT = ("patch_size", "depth", "embed_dim", "num_heads", "mlp_ratio", "pool", "layers", "drop_path")
_RESNET = ("stem", "output_stride", "layers")
BACKBONES: dict[str, Part] = {
    "resnet18": Part("models.backbones.resnet:resnet18", _RESNET),
    "resnet50": Part("models.backbones.resnet:resnet50", _RESNET),
    "botnet50": Part("models.backbones.botnet:botnet50", _RESNET),
    "vit_tiny": Part("models.backbones.vit:vit_tiny", _VIT),
    "vit_small": Part("models.backbones.vit:vit_small", _VIT),
    "vit_base": Part("models.backbones.vit:vit_base", _VIT),
    "vit_pytorch": Part(
        "models.backbones.vit_pytorch:vit_pytorch",
        (*(name for name in _VIT if name != "drop_path"), "dropout"),
    ),
}
for _name in ("swin_tiny", "swin_small", "swin_base"):
    BACKBONES[_name] = Part(f"models.backbones.swin:{_name}", ("layers", "drop_path"))
# What makes weights fit: taken over from the run that `--backbone.weights run:NAME` names.
ARCHITECTURE = (
    "name",
    "patch_size",
    "depth",
    "embed_dim",
    "num_heads",
    "mlp_ratio",
    "stem",
    "pool",
)
BACKBONE_COMMON = ("name", "weights", "freeze", "unfreeze_last")

DATASETS: dict[str, Part] = {
    "shapes": Part("datamodules.shapes:Shapes"),
    "voc": Part("datamodules.voc:VOC", ("split", "download")),
    "coco_stuff": Part("datamodules.coco_stuff:COCOStuff"),
    "cifar10": Part("datamodules.cifar10:CIFAR10", ("download",)),
    "image_folder": Part("datamodules.image_folder:ImageFolder", ("split", "val_fraction")),
}
DATA_COMMON = (
    "name",
    "root",
    "image_size",
    "batch_size",
    "num_workers",
    "blur",
    "views",
    "fixed_scales",
    "fixed_crops",
    "feature_cache",
)

OPTIMIZERS: dict[str, Part] = {
    "adamw": Part("utils.optim:adamw"),
    "lars": Part("utils.optim:lars", ("momentum",)),
    "sgd": Part("utils.optim:sgd", ("momentum",)),
}
OPTIM_COMMON = ("name", "lr", "weight_decay", "final_weight_decay", "schedule")
SCHEDULES: dict[str, Part] = {
    "cosine": Part("utils.schedules:warmup_cosine", ("warmup_epochs", "final_lr_ratio")),
    "poly": Part("utils.schedules:warmup_poly", ("warmup_epochs", "final_lr_ratio")),
    "constant": Part("utils.schedules:warmup_constant", ("warmup_epochs",)),
}

HEADS: dict[str, Part] = {
    "linear": Part("models.heads.linear:Linear"),
    "setr_naive": Part("models.heads.setr:SETRNaive"),
    "setr_pup": Part("models.heads.setr:SETRPUP"),
    "setr_mla": Part("models.heads.setr:SETRMLA"),
    "segformer_mlp": Part("models.heads.segformer:SegFormerMLP"),
    "segmenter_mask": Part("models.heads.segmenter:SegmenterMask"),
    "fcn": Part("models.heads.fcn:FCN"),
    "deeplabv3": Part("models.heads.deeplab:DeepLabV3"),
    "seed_linear": Part("models.heads.seed:SeedLinear"),
    "seed_naive": Part("models.heads.seed:SeedNaive"),
    "seed_pup": Part("models.heads.seed:SeedPUP"),
}
# Settings of group segmentation that only some fusions read stand beside these.
FUSIONS: dict[str, Part] = {
    "fusion1": Part("models.fusions.maps_as_channels:MapsAsChannels"),
    "fusion2": Part(
        "models.fusions.affinity_propagation:AffinityPropagation",
        ("fusion_steps", "fusion_keys", "fusion_carries"),
    ),
    "fusion3": Part("models.fusions.class_queries:ClassQueries"),
}
ATTENTION_LOSSES = ("mass", "shape", "diversity", "affinity")
LOSSES: dict[str, Part] = {
    "cross_entropy": Part("models.losses.segmentation:cross_entropy"),
    "dice": Part("models.losses.segmentation:dice"),
    "focal": Part("models.losses.segmentation:focal"),
    "jaccard": Part("models.losses.segmentation:jaccard"),
}
PROTOCOLS: dict[str, Part] = {
    "voc12_standard": Part("datamodules.transforms.segmentation:Standard"),
    "voc12_seed224": Part("datamodules.transforms.segmentation:Seed224"),
}

CALLBACKS: dict[str, Part] = {
    "attention_maps": Part("callbacks.attention_maps:AttentionMaps"),
    "attention_quality": Part("callbacks.attention_quality:AttentionQuality"),
    "effective_receptive_field": Part(
        "callbacks.effective_receptive_field:EffectiveReceptiveField"
    ),
    "feature_maps": Part("callbacks.feature_maps:FeatureMaps"),
    "cross_correlation": Part("callbacks.cross_correlation:CrossCorrelation"),
    "segmentation_predictions": Part("callbacks.segmentation_predictions:SegmentationPredictions"),
    "class_iou": Part("callbacks.class_iou:ClassIoU"),
    "confusion_matrix": Part("callbacks.confusion_matrix:ConfusionMatrix"),
    "image_counts": Part("callbacks.image_counts:ImageCounts"),
    "health": Part("callbacks.health:Health"),
    "online_probe": Part(
        "callbacks.online_probe:OnlineProbe", ("probe.kind", "probe.k", "probe.temperature")
    ),
    "embeddings": Part("callbacks.embeddings:Embeddings"),
    "views": Part("callbacks.views:Views"),
    "learning_curves": Part("callbacks.learning_curves:LearningCurves"),
}
