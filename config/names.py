"""Torch-free tables of everything that can be chosen by name: name → `module:attribute`.

To add a part, write one new file and one line here. The conditions on the fields of
`config/hparams.py` say which settings each part gets (`config/rules.py`).
"""

from __future__ import annotations

from typing import NamedTuple


def split(name: str) -> tuple[str, tuple[str, ...]]:
    """Finds the row of a table for a name: `family/*` matches every `family/member`.

    Returns:
        The row, and the member as a tuple: first argument of the row's target.
    """
    family, slash, member = name.partition("/")
    return (f"{family}/*", (member,)) if slash else (name, ())


PRETRAINING = ("barlow_twins", "dino", "dino_twins", "lejepa")
TASKS: dict[str, str] = {
    "barlow_twins": "agents.barlow_twins:BarlowTwins",
    "dino": "agents.dino:DINO",
    "dino_twins": "agents.dino_twins:DINOTwins",
    "lejepa": "agents.lejepa:LeJEPA",
    "linear_probe": "agents.linear_probe:LinearProbe",
    "segmentation": "agents.segmentation:Segmentation",
}

# Backbones by family: members of a family have the same settings.
RESNETS: dict[str, str] = {
    "resnet18": "models.backbones.resnet:resnet18",
    "resnet50": "models.backbones.resnet:resnet50",
    "botnet50": "models.backbones.botnet:botnet50",
}
TIMM_VITS: dict[str, str] = {
    "vit_demo": "models.backbones.vit:vit_demo",
    "vit_tiny": "models.backbones.vit:vit_tiny",
    "vit_small": "models.backbones.vit:vit_small",
    "vit_base": "models.backbones.vit:vit_base",
}
VITS: dict[str, str] = {
    **TIMM_VITS,
    "vit_pytorch": "models.backbones.vit_pytorch:vit_pytorch",
}
SWINS: dict[str, str] = {
    "swin_tiny": "models.backbones.swin:swin_tiny",
    "swin_small": "models.backbones.swin:swin_small",
    "swin_base": "models.backbones.swin:swin_base",
}
TIMM = "timm/*"  # any other of timm's networks: see `split`
BACKBONES: dict[str, str] = {
    **RESNETS,
    **VITS,
    **SWINS,
    TIMM: "models.backbones.timm_any:build",
}
BACKBONE_ALIASES = {
    "convnext_tiny": "timm/convnext_tiny",
    "dinov2_small": "timm/vit_small_patch14_dinov2",
    "dinov2_base": "timm/vit_base_patch14_dinov2",
    "dinov3_small": "timm/vit_small_patch16_dinov3",
    "dinov3_base": "timm/vit_base_patch16_dinov3",
}
WITHOUT_ATTENTION: tuple[str, ...] = ("resnet18", "resnet50")

DATASETS: dict[str, str] = {
    "shapes": "datamodules.shapes:Shapes",
    "voc": "datamodules.voc:VOC",
    "coco_stuff": "datamodules.coco_stuff:COCOStuff",
    "mask_folder": "datamodules.mask_folder:MaskFolder",
    "cifar10": "datamodules.cifar10:CIFAR10",
    "image_folder": "datamodules.image_folder:ImageFolder",
}
WITHOUT_MASKS: tuple[str, ...] = ("cifar10", "image_folder")

OPTIMIZERS: dict[str, str] = {
    "adamw": "utils.optim:adamw",
    "lars": "utils.optim:lars",
    "sgd": "utils.optim:sgd",
}
SCHEDULES: dict[str, str] = {
    "cosine": "utils.schedules:warmup_cosine",
    "poly": "utils.schedules:warmup_poly",
    "constant": "utils.schedules:warmup_constant",
}

HEADS: dict[str, str] = {
    "linear": "models.heads.linear:Linear",
    "setr_naive": "models.heads.setr:SETRNaive",
    "setr_pup": "models.heads.setr:SETRPUP",
    "setr_mla": "models.heads.setr:SETRMLA",
    "segformer_mlp": "models.heads.segformer:SegFormerMLP",
    "segmenter_mask": "models.heads.segmenter:SegmenterMask",
    "fcn": "models.heads.fcn:FCN",
    "deeplabv3": "models.heads.deeplab:DeepLabV3",
    "knn": "models.heads.knn:KNN",
    "seed_linear": "models.heads.seed:SeedLinear",
    "seed_naive": "models.heads.seed:SeedNaive",
    "seed_pup": "models.heads.seed:SeedPUP",
}
# fusion1, 2 and 3 are the study's names; each has an alias that says what it does.
FUSIONS: dict[str, str] = {
    "fusion1": "models.fusions.maps_as_channels:MapsAsChannels",
    "fusion2": "models.fusions.affinity_propagation:AffinityPropagation",
    "fusion3": "models.fusions.class_queries:ClassQueries",
}
FUSION_ALIASES = {
    "maps_as_channels": "fusion1",
    "affinity_propagation": "fusion2",
    "class_queries": "fusion3",
}
FUSION_EDGES = ("qk", "qq", "kk", "keys", "tokens")
ATTENTION_LOSSES = ("mass", "shape", "diversity", "affinity")
LOSSES: dict[str, str] = {
    "cross_entropy": "models.losses.segmentation:cross_entropy",
    "dice": "models.losses.segmentation:dice",
    "focal": "models.losses.segmentation:focal",
    "jaccard": "models.losses.segmentation:jaccard",
}
PROTOCOLS: dict[str, str] = {
    "voc12_standard": "datamodules.transforms.segmentation:Standard",
    "voc12_seed224": "datamodules.transforms.segmentation:Seed224",
}


class Callback(NamedTuple):
    """A callback and its tasks. A group of settings of the same name can switch it off.

    Callbacks only observe: if one fails, the run counts that and continues (`callbacks/guard.py`).

    Attributes:
        target: `module:attribute`.
        tasks: the tasks whose training it observes.
        evaluates: those tasks for which it also adds numbers to --evaluate.
    """

    target: str
    tasks: tuple[str, ...]
    evaluates: tuple[str, ...] = ()


_BACKBONES_IN_TRAINING = (*PRETRAINING, "segmentation")
_JUDGED_BY_CLASS = ("segmentation", "linear_probe")
CALLBACKS: dict[str, Callback] = {
    "attention_maps": Callback("callbacks.attention_maps:AttentionMaps", _BACKBONES_IN_TRAINING),
    "attention_quality": Callback(
        "callbacks.attention_quality:AttentionQuality", _BACKBONES_IN_TRAINING, ("segmentation",)
    ),
    "effective_receptive_field": Callback(
        "callbacks.effective_receptive_field:EffectiveReceptiveField", _BACKBONES_IN_TRAINING
    ),
    "feature_maps": Callback("callbacks.feature_maps:FeatureMaps", _BACKBONES_IN_TRAINING),
    "cross_correlation": Callback(
        "callbacks.cross_correlation:CrossCorrelation", ("barlow_twins",)
    ),
    "segmentation_predictions": Callback(
        "callbacks.segmentation_predictions:SegmentationPredictions", ("segmentation",)
    ),
    "class_iou": Callback("callbacks.class_iou:ClassIoU", ("segmentation",)),
    "confusion_matrix": Callback("callbacks.confusion_matrix:ConfusionMatrix", _JUDGED_BY_CLASS),
    "image_counts": Callback("callbacks.image_counts:ImageCounts", ("segmentation",)),
    "effective_rank": Callback(
        "callbacks.effective_rank:EffectiveRank",
        ("barlow_twins", "lejepa"),
        ("barlow_twins", "lejepa"),
    ),
    "gradient_agreement": Callback("callbacks.gradient_agreement:GradientAgreement", PRETRAINING),
    "online_probe": Callback("callbacks.online_probe:OnlineProbe", PRETRAINING),
    "dense_knn": Callback("callbacks.dense_knn:DenseKNN", PRETRAINING),
    # After the callbacks that it reads.
    "health": Callback("callbacks.health:Health", PRETRAINING),
    "gradient_histograms": Callback(
        "callbacks.gradient_histograms:GradientHistograms", _BACKBONES_IN_TRAINING
    ),
    "embeddings": Callback("callbacks.embeddings:Embeddings", PRETRAINING),
    "views": Callback("callbacks.views:Views", _BACKBONES_IN_TRAINING),
    "learning_curves": Callback("callbacks.learning_curves:LearningCurves", tuple(TASKS)),
}
