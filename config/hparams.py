"""Every setting of a run. Edit the defaults here, or override them from the command line.

    python main.py                                       the defaults below
    python main.py --task dino                           another task, same defaults
    python main.py --data.name voc --data.root ~/data    any setting, by its dotted name
    python main.py --experiment brisk-valley             one of config/experiments/*.yaml
    python main.py --study quick                         one of config/studies/*.yaml: many runs
    python main.py --fast                                one batch of everything: does it work?
    python main.py --help                                this file, as help

Precedence: this file < --experiment < command line. What comments call `null` is Python's None
here, and `null` on the command line. `auto` is determined from task, data and backbone when the run
starts, printed and saved. As shipped, these settings train a small ViT with Barlow Twins on
generated images: no download, no account, two to five minutes on two CPU cores. For your own run,
edit two lines: `task` (at the end) and `data.name`.

A text that begins with `~/` is a path in your home folder, in files as well.

`Needs` and `Unless` say when a setting has an effect (`config/rules.py`); a setting without effect
is refused. With --run.resume, changed settings act from the next step on; those marked `Kept` are
refused, and if one marked `MEASURES` changes, the best checkpoint is chosen anew. --evaluate,
--predict and --export refuse settings that act only in training: those marked `IN_TRAINING`,
cadences, and settings that need something that learns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from config import names
from config.rules import Needs, Unless
from config.types import (
    Auto,
    Between,
    Cadence,
    Count,
    Enabled,
    FolderName,
    Fraction,
    InTraining,
    Kept,
    Measures,
    Natural,
    NonNegative,
    Often,
    OneOf,
    Seldom,
    SomeOf,
    StepCadence,
    Width,
)

# Conditions that several settings share.
PRETRAINS = Needs("task", *names.PRETRAINING)
SEGMENTS = Needs("task", "segmentation")
PASSES_IMAGES = Needs("task", *names.PRETRAINING, "segmentation")  # in every step
TRAINS = Unless("task", "linear_probe") | Unless("probe.kind", "knn")
LEARNT_HEAD = Unless("segmentation.head", "knn")
HEAD_LEARNS = Unless("task", "segmentation") | LEARNT_HEAD
BACKBONE_LEARNS = Needs("backbone.unfreeze_last") | Unless("backbone.freeze")
IS_VIT = Needs("backbone.name", *names.VITS)
IS_TIMM = Needs("backbone.name", names.TIMM)
IS_VICREG = Needs("barlow_twins.loss", "vicreg")
VALIDATES = Unless("trainer.limit_val_batches", 0)
SEVERAL_PROCESSES = Unless("trainer.devices", 1) | Unless("trainer.num_nodes", 1)

# A resumed run keeps settings with these marks, for this reason.
OF_THE_START = Kept("it acts only when a run starts")
MAKES_EPOCHS = Kept("the order of its images and its schedules depend on the length of its epochs")
MAKES_PROCESSES = Kept("each of its processes has a random state of its own")
CHOOSES_TRAINED = Kept("its optimizer has a state for the parameters that were trained")
# If one of these changes, a resumed run chooses its best checkpoint anew.
MEASURES = Measures()
# --evaluate, --predict and --export refuse these, besides settings that need something that learns.
IN_TRAINING = InTraining()


def _group(settings: type) -> Any:
    return field(default_factory=settings)


@dataclass
class RunHparams:
    """The run itself: its name, its folder, its randomness."""

    name: Annotated[
        str | None,
        FolderName(reserved=("none", "auto")),
        Needs("run.resume", "none"),
        IN_TRAINING,
    ] = None
    """Folder name under `dir`, without slashes. An existing folder is never overwritten, unless its
    run was killed before its first checkpoint, or failed before its first step. null: the name of
    the experiment (with -2, -3 … if it exists), else generated."""
    dir: str = "runs"
    """Folder that holds all runs."""
    seed: Annotated[int, Between(0, 2**32 - 1), OF_THE_START] = 0
    """Seeds weights, sampling and augmentation. Results do not depend on data.num_workers."""
    deterministic: Annotated[bool, IN_TRAINING] = False
    """Deterministic GPU kernels, without fused attention: same numbers on the same card, slower.
    Exception: trained positions that are interpolated, such as for DINO's local crops."""
    resume: str = "none"
    """none | auto (the newest unfinished run in `dir`) | name or folder of a run. Continues in the
    same folder with that run's settings. Other options on the command line act from the next step
    on (rates, schedules, length, …), or are refused (such as data.batch_size, which a run keeps). A
    run without a checkpoint starts anew in its folder."""


@dataclass
class DataHparams:
    """The images."""

    name: Annotated[str, OneOf(names.DATASETS), MAKES_EPOCHS] = "shapes"
    """shapes (generated, no download) | voc | coco_stuff | mask_folder (your own images and masks:
    images/{train,val}, masks/{train,val}, classes.yaml) | cifar10 (the folder that holds
    cifar-10-batches-py, or an npz file) | image_folder (any folder of images). Masks: shapes, voc,
    coco_stuff, mask_folder; classes: shapes, cifar10, and image_folder with one folder a class."""
    root: str | None = None
    """Where the data is. null: data/<name>. For voc the folder that holds VOCdevkit, VOC2012
    itself, or one between; other data in VOC's layout has a classes.yaml beside JPEGImages."""
    split: Annotated[
        Literal["train", "trainaug", "all_minus_val", "all"],
        Needs("data.name", "voc", "mask_folder", "image_folder"),
        Unless("task", "linear_probe"),
        MAKES_EPOCHS,
    ] = "train"
    """Images to train on. voc: train is the segmentation list (1,464), trainaug the list with the
    extra masks of SBD (10,582, in SegmentationClassAug), all_minus_val all images outside the
    validation list. `all` includes evaluation images and marks the run as transductive."""
    download: Annotated[bool, Needs("data.name", "voc", "cifar10")] = False
    """Download the official archive (voc 2 GB, cifar10 170 MB) to `root` if it is missing."""
    val_fraction: Annotated[
        float,
        Between(0.0, 0.5),
        Needs("data.name", "mask_folder", "image_folder")
        | Needs("task", "segmentation", "linear_probe"),
        MAKES_EPOCHS,
    ] = 0.1
    """Share of the training images to hold out for validation: if image_folder or mask_folder has
    no val/ folder; and for segmentation and linear_probe, whose test set is the data set's own val
    split (if a folder has both test/ and val/: test/ is the test set, val/ is for validation)."""
    image_size: Annotated[int | str, Auto(), Between(16, 2**15), MEASURES] = "auto"
    """Side of the square training crops in pixels; a multiple of the patch size (segmentation pads
    to it). Segmentation is evaluated on whole images with this shorter side. auto: 48 (shapes), 32
    (cifar10), else 224; rounded up to whole patches, at least 8 x 8 for a ViT except vit_demo."""
    batch_size: Annotated[int | str, Auto(), Between(2), MAKES_EPOCHS] = "auto"
    """Images per batch, over all GPUs: a *scientific* choice. Barlow Twins correlates over exactly
    this many. If memory is short, lower trainer.chunk_size instead: the result stays the same
    (except for BatchNorm in the backbone, which sees a chunk). auto: 256 (pretraining on shapes:
    128), segmentation 16; fewer if there are few images."""
    views: Annotated[Literal["random", "fixed"], SEGMENTS, LEARNT_HEAD] = "random"
    """random: new crops in every epoch | fixed: each image and its mirror image at fixed_scales,
    fixed_crops times. For these, features of a frozen backbone are computed only once."""
    fixed_scales: Annotated[list[float], Between(0.1, 10.0), Needs("data.views", "fixed")] = field(
        default_factory=lambda: [1.0]
    )
    """Shorter sides relative to image_size. 1.0 1.5 doubles cache and variety."""
    fixed_crops: Annotated[Count, Needs("data.views", "fixed")] = 1
    """Crops of image_size per image and scale, drawn once."""
    feature_cache: Annotated[
        str,
        Needs("data.views", "fixed"),
        Needs("backbone.freeze", True),
        Unless("backbone.unfreeze_last"),
    ] = "auto"
    """Where to store the features of all images, to compute them once for all runs with the same
    weights, images and layers; also results of readouts of the backbone. auto: in
    <run.dir>/.cache | off | a folder. Its size is printed first."""
    blur: Annotated[bool | None, PRETRAINS, MEASURES] = None
    """Whether augmentations include blur. null: only above 32 px; CIFAR recipes have none."""
    num_workers: Annotated[int, Between(0, 1024)] | None = None
    """Number of loader processes. null: on a GPU one per core, shared by trainer.devices; on a CPU
    one fewer than there are cores, at most 8; on Windows and macOS, where each takes half a
    gigabyte, at most 4. 0: load in the main process."""


@dataclass
class BackboneHparams:
    """The network that computes the features. null: the architecture's own value."""

    name: Annotated[str, OneOf(("auto", *names.BACKBONES, *names.BACKBONE_ALIASES))] = "auto"
    """Architecture. vit_demo is a toy for the demonstration (patch 8, depth 3, width 96: 0.4 M
    parameters). timm/NAME or timm/NAME.TAG: any model of timm, such as timm/convnext_nano or
    timm/vit_base_patch16_224.mae; dinov2_small, dinov3_small, convnext_tiny, … are short names.
    auto: vit_demo for shapes, resnet18 for cifar10, vit_small for photographs."""
    patch_size: Annotated[Count | None, IS_VIT | IS_TIMM] = None
    """Side of a patch in pixels. null: 16 (vit_demo: 8, timm/*: the model's own). 8 sees finer
    detail than 16, with four times the tokens."""
    depth: Annotated[int | None, Between(1, 1000), IS_VIT] = None
    """Number of blocks. null: 12 (vit_demo: 3)."""
    embed_dim: Annotated[Width | None, IS_VIT] = None
    """Width. null: 96 (demo), 192 (tiny), 384 (small, vit_pytorch), 768 (base)."""
    num_heads: Annotated[Count | None, IS_VIT, MEASURES] = None
    """Attention heads, a divisor of the width. null: 3 (demo, tiny), 6 (small, vit_pytorch), 12
    (base)."""
    mlp_ratio: Annotated[float, Between(0.1, 64), IS_VIT] | None = None
    """Hidden width of the MLP relative to embed_dim. null: 4."""
    registers: Annotated[Natural, Needs("backbone.name", *names.TIMM_VITS)] = 0
    """Register tokens beside CLS (Darcet et al. 2024). DINOv2's files with registers need 4."""
    drop_path: Annotated[
        float,
        Between(0.0, 0.9),
        PASSES_IMAGES,
        Needs("backbone.name", *names.TIMM_VITS, *names.SWINS, names.TIMM),
        BACKBONE_LEARNS,
    ] = 0.0
    """Stochastic depth rate of the last block, growing linearly over depth."""
    dropout: Annotated[
        float,
        Between(0.0, 0.9),
        PASSES_IMAGES,
        Needs("backbone.name", "vit_pytorch"),
        BACKBONE_LEARNS,
    ] = 0.0
    """Dropout on embeddings, attention and MLPs (the study used 0.1)."""
    stem: Annotated[
        Literal["auto", "imagenet", "cifar", "cifar_maxpool"],
        Needs("backbone.name", *names.RESNETS),
    ] = "auto"
    """imagenet (7x7 stride 2, max-pool) | cifar (3x3 stride 1, for 32 px) | cifar_maxpool (the same
    with max-pool: a quarter of the work). auto: cifar_maxpool up to 64 px without weights and at
    output_stride 32; else imagenet."""
    output_stride: Annotated[
        Literal[8, 16, 32], Needs("backbone.name", *names.RESNETS, names.TIMM), MEASURES
    ] = 32
    """8 or 16: denser maps, by dilation (resnet50, timm/* if timm supports it) or without the last
    downsampling (botnet50: 16)."""
    pool: Annotated[Literal["cls", "mean"], IS_VIT, MEASURES] = "cls"
    """What represents the image: the CLS token | the mean of the patches, with which the last
    block's CLS attention is never trained."""
    layers: Annotated[str, MEASURES] = "last"
    """Which blocks (ViT) or stages (others) give feature maps: last, last4, or e.g. 2,5,8,11."""
    weights: Annotated[str, OF_THE_START, IN_TRAINING] = "none"
    """none | pretrained (supervised ImageNet; timm/*: those of the tag, else timm's first) | dino |
    barlow_twins | coco (DeepLabV3's, resnet50 with output_stride 8) | a file | run:NAME, which also
    sets its architecture. Names in a file may have any prefix; a network that cannot be expressed
    exactly is refused. Positions and patches are resized to other image or patch sizes. Files do
    not record the number of heads: set num_heads if it is not the architecture's."""
    freeze: Annotated[bool, PASSES_IMAGES, CHOOSES_TRAINED] = False
    """Keep the backbone as loaded: parameters and buffers unchanged, eval mode, not optimised."""
    unfreeze_last: Annotated[Natural, Needs("backbone.freeze", True), CHOOSES_TRAINED] = 0
    """Still train the last n blocks (ViT) or stages (ResNet)."""
    freeze_epochs: Annotated[
        Natural, Needs("task", "barlow_twins", "lejepa"), Unless("backbone.freeze"), IN_TRAINING
    ] = 0
    """Epochs at the start that train only the new projector, for pretraining that continues from
    weights. If the learning rate was so high that weights were unlearnt, this did not help; a low
    rate (optim.lr auto) did."""


@dataclass
class BarlowTwinsHparams:
    """Barlow Twins (Zbontar et al. 2021); VICReg, which differs only in the loss."""

    projector_dim: Annotated[int | str, Auto(), Between(2, 2**17)] = "auto"
    """Width D of the projector. auto: 512 (shapes: 16). The paper uses 8192 at batch 2048; with
    smaller batches less is safer: the noise in the loss grows as lambd * D^2 / batch_size."""
    projector_layers: Count = 3
    """Number of linear layers of the projector, with BatchNorm and ReLU between them."""
    hidden_dim: Annotated[
        int | str, Auto(), Between(2, 2**17), Unless("barlow_twins.projector_layers", 1)
    ] = "auto"
    """Width of the projector's other layers. auto: projector_dim, as in the paper, but at least
    512: a narrow last layer needs wide ones before it (benchmarks/RESULTS.md, sections 1 and
    23)."""
    loss: Annotated[Literal["barlow_twins", "vicreg"], Needs("task", "barlow_twins"), MEASURES] = (
        "barlow_twins"
    )
    """barlow_twins (correlations) | vicreg (Bardes et al. 2022: distance, variance, covariance),
    which depends less on the batch size."""
    lambd: Annotated[
        float | str, Auto(), Between(0.0), Unless("barlow_twins.loss", "vicreg"), MEASURES
    ] = "auto"
    """Weight of the off-diagonal terms. auto: 2.6 / projector_dim (the paper's 0.0051 at 512),
    which balances them with the diagonal at any width; a factor of two matters little."""
    crop_scale: Annotated[list[float], Needs("task", "barlow_twins"), MEASURES] = field(
        default_factory=list
    )
    """Smallest and largest share of the image's area in a view. Empty: 0.08 1, as in the paper
    (shapes: 0.25 1)."""
    invariance_weight: Annotated[NonNegative, IS_VICREG, MEASURES] = 25.0
    """VICReg: weight of the distance between the views."""
    variance_weight: Annotated[NonNegative, IS_VICREG, MEASURES] = 25.0
    """VICReg: weight of how far standard deviations fall short of 1."""
    covariance_weight: Annotated[NonNegative, IS_VICREG, MEASURES] = 1.0
    """VICReg: weight of the covariances between dimensions."""
    mix: Annotated[NonNegative, Needs("barlow_twins.loss", "barlow_twins")] = 0.0
    """Weight, relative to lambd, of a term on mixes of two images (Mixed Barlow Twins, Bandara et
    al. 2023) against overfitting on few images; 1 to 5. A step takes half as long again, for a
    third pass through the backbone. 0: off."""
    scale: Annotated[float, Between(1e-8), Needs("task", "barlow_twins"), MEASURES] = 1.0
    """Factor on the loss. No effect with AdamW; other recipes with LARS use 0.024 or 0.1."""


@dataclass
class DINOHparams:
    """DINO (Caron et al. 2021). auto depends on the number of images and steps, and is printed."""

    out_dim: Annotated[int | str, Auto(), Between(2, 2**20)] = "auto"
    """Number of prototypes K. auto: 1024 up to 20k images, 2048 to 50k, 4096 to 100k, 16384 to
    200k, 32768 to 500k, else the paper's 65536."""
    hidden_dim: Annotated[int | str, Auto(), Between(1, 2**17)] = "auto"
    """Head: width of the MLP. auto: 2048 (shapes: 512)."""
    bottleneck_dim: Width = 256
    """Head: width before the last layer."""
    head_layers: Count = 3
    """Head: number of linear layers of the MLP."""
    head_batch_norm: bool | None = None
    """Head: BatchNorm between its layers, over all views of the batch (on all GPUs). A random ViT
    gives nearly the same features for all images, and without BatchNorm a run of a few hundred
    steps stays there: COLLAPSE. null: true on shapes, else false, as in the paper."""
    norm_last_layer: Annotated[bool, CHOOSES_TRAINED] = True
    """Keep the prototypes' norms at 1: steadier; false can be a little better for small ViTs."""
    student_temp: Annotated[float, Between(1e-3)] = 0.1
    """Temperature of the student."""
    teacher_temp: Annotated[float | str, Auto(), Between(1e-3), Needs("dino.sharpening", True)] = (
        "auto"
    )
    """Temperature of the teacher after the warm-up. auto: 0.02 up to 20k images, rising to 0.07 for
    as many as ImageNet has. Lower it if the loss stays at ln(out_dim)."""
    warmup_teacher_temp: Annotated[
        float | str, Auto(), Between(1e-3), Needs("dino.sharpening", True)
    ] = "auto"
    """Temperature of the teacher at the start. auto: 0.04, or teacher_temp if that is lower."""
    warmup_teacher_temp_steps: Annotated[
        int | str, Auto(), Between(0), Needs("dino.sharpening", True)
    ] = "auto"
    """Steps until teacher_temp is reached. auto: three tenths of the run, at most 37500."""
    momentum_teacher: Annotated[float | str, Auto(), Between(0.0, 1.0), Needs("dino.ema", True)] = (
        "auto"
    )
    """Momentum of the teacher per optimizer step; it rises from this value to 1. auto: 0.99 up to
    20k images, rising to 0.996 for as many as ImageNet has. In runs of a few hundred steps the
    teacher stays close to its random start: export the student then, as a lower momentum leads to a
    collapse."""
    center_momentum: Annotated[Fraction, Needs("dino.centering", True)] = 0.9
    """Momentum of the centre."""
    freeze_last_layer_steps: Annotated[int | str, Auto(), Between(0)] = "auto"
    """Steps at the start that do not train the prototypes. auto: one epoch, at most 1250, and at
    most three tenths of the run."""
    clip_grad: NonNegative = 3.0
    """Largest gradient norm of each single tensor of the student; 0: no clipping. The projector of
    dino_twins is never clipped, as in Barlow Twins."""
    local_crops_number: Annotated[int | str, Auto(), Between(0), Needs("dino.multi_crop", True)] = (
        "auto"
    )
    """Number of local views besides the two global ones; only the student sees them. Eight of 96 px
    have as many pixels as one and a half global views of 224 px. auto: 8 (shapes: 4)."""
    local_crop_size: Annotated[int | str, Auto(), Between(8), Needs("dino.local_crops_number")] = (
        "auto"
    )
    """Side of local views in pixels. auto: 3/7 of image_size (96 for 224), rounded to a multiple of
    the patch size, or of 16 if patches are smaller than 8 and divide it."""
    global_crops_scale: list[float] = field(default_factory=list)
    """Smallest and largest share of the image's area in a global view. Empty: 0.4 1, without local
    views 0.14 1."""
    local_crops_scale: Annotated[list[float], Needs("dino.local_crops_number")] = field(
        default_factory=list
    )
    """Smallest and largest share of the image's area in a local view. Empty: 0.05 0.4 (shapes,
    where the ground has no information: 0.15 0.5)."""
    export: Literal["teacher", "student"] = "teacher"
    """Which backbone is saved, shown in figures and evaluated."""
    centering: bool = True
    """Subtract the centre from the teacher's outputs. false: one prototype tends to win."""
    sharpening: bool = True
    """Use teacher_temp. false: the student's temperature; outputs tend to be uniform."""
    ema: bool = True
    """The teacher is a moving average. false: it is the student of the previous step."""
    multi_crop: bool = True
    """Use local views. false: only the two global views."""


@dataclass
class DINOTwinsHparams:
    """DINO plus a second loss on the same backbone; dino and the group of `term` set the heads."""

    term: Literal["barlow_twins", "sigreg"] = "barlow_twins"
    """The second loss: barlow_twins (group barlow_twins) | sigreg (group lejepa: makes embeddings
    Gaussian, which excludes a collapse). Either may make dino.centering, sharpening and ema
    unnecessary: switch them off to try."""
    beta: Annotated[float | str, Auto(), Between(0.0)] = "auto"
    """Weight of the second loss. auto: 2.5e-3 for barlow_twins (the study's; this loss grows with
    the projector's width: at 512 its part starts at a sixth of DINO's), 0.05 for sigreg
    (LeJEPA's)."""
    pairs: Annotated[
        Literal["global", "global_local", "all"], Needs("dino_twins.term", "barlow_twins")
    ] = "global"
    """Pairs of views to correlate: the two global ones | all with a global one | all, as in the
    study."""


@dataclass
class LeJEPAHparams:
    """LeJEPA (Balestriero & LeCun 2025): views predict their mean, embeddings become Gaussian."""

    views: Annotated[int, Between(2), Needs("task", "lejepa"), MEASURES] = 4
    """Number V of views per image, all of the same kind. The time of a step grows with them; 2 take
    as long as Barlow Twins."""
    crop_scale: Annotated[list[float], Needs("task", "lejepa"), MEASURES] = field(
        default_factory=lambda: [0.08, 1.0]
    )
    """Smallest and largest share of the image's area in a view."""
    projector_dim: Annotated[int, Between(2, 2**17)] = 64
    """Width K of the embeddings; 16 to 128. They need not be wide, because dimensions are not
    compared with each other."""
    hidden_dim: Width = 2048
    """Width of the projector's two hidden layers."""
    lambd: Annotated[Fraction, Needs("task", "lejepa"), MEASURES] = 0.05
    """Weight of SIGReg, with 1 - lambd for the prediction loss: the method's only hyperparameter;
    0.02 to 0.1."""
    slices: Annotated[Count, MEASURES] = 256
    """Number M of random directions to test embeddings along, new in every step; 256 to 1024."""
    knots: Annotated[int, Between(3, 257), MEASURES] = 17
    """Number of points of the test's integral."""
    integration_limit: Annotated[float, Between(0.5, 20.0), MEASURES] = 3.0
    """Upper limit of the integral."""


@dataclass
class HeadInformationHparams:
    """A term besides the self-supervised loss that makes attention heads differ; no labels."""

    weight: NonNegative = 0.0
    """Weight of I(head; patch) / log(heads), which is in 0 … 1. Barlow Twins: a few per cent of its
    loss, e.g. 10; DINO: 0.1 to 1."""
    blocks: Annotated[list[int], Needs("head_information.weight")] = field(
        default_factory=lambda: [-1]
    )
    """Blocks whose heads should differ; negative numbers count from the end."""


@dataclass
class ProbeDataHparams:
    """A labelled data set besides the one to train on."""

    name: Annotated[str, OneOf(names.DATASETS)] | None = None
    """shapes | cifar10 | image_folder. null: the training images, if they have labels."""
    root: Annotated[str | None, Needs("probe.data.name")] = None
    """Its folder. null: data/<name>."""


_PROBES = Needs("task", "linear_probe") | Needs("callbacks.online_probe.enabled", True)
_HAS_KNN = Needs("probe.kind", "knn", "both")


@dataclass
class ProbeHparams:
    """How features are evaluated by classification: linear_probe and callbacks.online_probe."""

    kind: Annotated[Literal["linear", "knn", "both"], _PROBES] = "both"
    """A linear classifier, k nearest neighbours, or both."""
    features: Annotated[Literal["pooled", "cls"], Needs("task", "linear_probe"), MEASURES] = (
        "pooled"
    )
    """The backbone's pooled output | the CLS tokens of backbone.layers, concatenated (DINO's
    protocol for ViT-S: last4)."""
    k: Annotated[Count, _PROBES, _HAS_KNN] = 20
    """Number of neighbours."""
    temperature: Annotated[float, Between(1e-3), _PROBES, _HAS_KNN] = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""
    num_images: Annotated[Count, Needs("task", "linear_probe"), MAKES_EPOCHS] | None = None
    """Use only this many images per split, evenly spaced, for a try-out; null: all."""
    data: Annotated[
        ProbeDataHparams,
        PRETRAINS,
        Needs("callbacks.online_probe.enabled") | Needs("callbacks.embeddings.enabled"),
    ] = _group(ProbeDataHparams)


@dataclass
class KNNHeadHparams:
    """Segmentation by nearest patches (Balažević et al. 2023), exact."""

    k: Count = 30
    """Number of nearest patches; all in memory if there are fewer."""
    temperature: Annotated[float, Between(1e-3)] = 0.02
    """The classes of a nearest patch weigh exp(cosine / temperature)."""


@dataclass
class SegmentationHparams:
    """Semantic segmentation on a backbone; --backbone.freeze true leaves that unchanged."""

    head: Annotated[str, OneOf(names.HEADS)] = "setr_naive"
    """linear (1x1) | setr_naive | setr_pup | setr_mla (four layers) | segformer_mlp (pyramids) |
    segmenter_mask (class tokens) | fcn | deeplabv3 (for output_stride 8) | seed_linear, seed_naive,
    seed_pup: the study's | knn (nothing is trained: the classes of the nearest patches of the
    training images; needs --backbone.freeze true). All but setr_mla and segformer_mlp concatenate
    several backbone.layers."""
    knn: Annotated[KNNHeadHparams, Needs("segmentation.head", "knn")] = _group(KNNHeadHparams)
    head_weights: Annotated[str, LEARNT_HEAD, OF_THE_START, IN_TRAINING] = "none"
    """none | coco (deeplabv3 with 21 classes) | a file | run:NAME."""
    head_lr_multiplier: Annotated[float, Between(1e-3), LEARNT_HEAD, IN_TRAINING] = 1.0
    """Learning rate of the head relative to the backbone's; SETR fine-tunes with 10."""
    loss: Annotated[list[str], SomeOf(names.LOSSES), LEARNT_HEAD] = field(
        default_factory=lambda: ["cross_entropy"]
    )
    """cross_entropy | dice | focal | jaccard, or a sum of several. Void pixels are ignored."""
    loss_weights: Annotated[list[float], Between(0.0), LEARNT_HEAD] = field(default_factory=list)
    """Weight of each loss; empty: 1 each."""
    class_weights: Annotated[
        Literal["none", "inverse_frequency", "listed"], Needs("segmentation.loss", "cross_entropy")
    ] = "none"
    """Weights of pixels in the training cross-entropy: none (all pixels count the same; rare
    classes may be missed) | inverse_frequency (all classes count the same, by their shares of the
    training masks; finds rare classes, with some false alarms) | listed. The losses of held-out and
    test images are unweighted."""
    listed_class_weights: Annotated[
        list[float], Between(0.0), Needs("segmentation.class_weights", "listed")
    ] = field(default_factory=list)
    """One weight for each class, in the order of the classes."""
    loss_stride: Annotated[Literal[1, 2, 4, 8], LEARNT_HEAD] = 1
    """Compute the loss on every nth pixel of labels and logits. 4 (a quarter of each side) learns
    the same with a sixteenth of the memory: needed for 171 classes at 512 px, or for speed."""
    protocol: Annotated[str, OneOf(names.PROTOCOLS), MEASURES] = "voc12_standard"
    """voc12_standard (original resolution, void ignored) | voc12_seed224 (the study's: squashed to
    224 x 224, void is background, in training too). Never compare results of the two."""
    fusion: Annotated[
        list[str], SomeOf((*names.FUSIONS, *names.FUSION_ALIASES), 0), LEARNT_HEAD
    ] = field(default_factory=list)
    """How the head uses the backbone's attention, any of: fusion1 (maps_as_channels) | fusion2
    (affinity_propagation: patches that attend to each other share their logits) | fusion3
    (class_queries, guided by attention maps). Both names work."""
    fusion_control: Annotated[
        Literal["none", "shuffled", "uniform", "local", "random_init"],
        Needs("segmentation.fusion"),
        MEASURES,
    ] = "none"
    """The same fusion with the attention of another image of the batch (shuffled) | to all patches
    alike (uniform) | to neighbours, in a radius that grows from head to head (local) | of a random
    network (random_init). Only a gain over all four is due to attention."""
    attention_blocks: Annotated[
        list[int], Needs("segmentation.fusion") | Needs("segmentation.attention_loss"), MEASURES
    ] = field(default_factory=lambda: [-2, -1])
    """Blocks whose attention fusions and attention_loss read; negative ones from the end."""
    fusion_lr_multiplier: Annotated[
        float, Between(1e-3), Needs("segmentation.fusion"), IN_TRAINING
    ] = 10.0
    """Learning rate of a fusion's few scalars (shares, weights of heads) relative to the head's."""
    fusion_carries: Annotated[
        Literal["logits", "features"], Needs("segmentation.fusion", "fusion2"), MEASURES
    ] = "logits"
    """What patches share: logits of the head, or features before it."""
    fusion_steps: Annotated[Count, Needs("segmentation.fusion", "fusion2"), MEASURES] = 3
    """How many times patches share it."""
    fusion_edges: Annotated[
        list[str], SomeOf(names.FUSION_EDGES), Needs("segmentation.fusion", "fusion2"), MEASURES
    ] = field(default_factory=lambda: ["qk", "keys"])
    """How strongly patches are connected, a learnt mix of: qk (attention, of every head and block)
    | qq, kk (queries, or keys, that attend to each other) | keys (cosine of keys, as in LOST and
    TokenCut) | tokens (cosine of the backbone's output, an alternative without attention)."""
    attention_loss: Annotated[NonNegative, LEARNT_HEAD] = 0.0
    """Weight of a loss on the attention itself; 0.1 to 0.4. It trains the attention heads of
    unfrozen blocks (backbone.unfreeze_last), and the parameters of fusion2 and fusion3."""
    attention_loss_terms: Annotated[
        list[str], SomeOf(names.ATTENTION_LOSSES), Needs("segmentation.attention_loss")
    ] = field(default_factory=lambda: ["mass", "shape", "diversity", "affinity"])
    """mass (some head attends to each object) | shape (to all of the object) | diversity (heads
    differ) | affinity (fusion2: patches of one class are connected)."""
    attention_loss_warmup_epochs: Annotated[
        NonNegative, Needs("segmentation.attention_loss"), IN_TRAINING
    ] = 1.0
    """Epochs in which the weight of attention_loss rises from 0."""
    test_window: Count | None = None
    """Test: label windows of this side in pixels and average overlaps. null: the whole image."""
    test_stride: Annotated[Count | None, Needs("segmentation.test_window")] = None
    """Test: pixels from one window to the next. null: two thirds of test_window."""
    # Both average softmax(logits), but a k-NN head returns shares of its neighbours, not logits.
    test_scales: Annotated[list[float], Between(0.1, 10.0), LEARNT_HEAD] = field(
        default_factory=lambda: [1.0]
    )
    """Test: shorter sides relative to image_size (voc12_seed224: sides relative to 224);
    probabilities are averaged. Usual: 0.5 0.75 1 1.25 1.5."""
    test_flip: Annotated[bool, LEARNT_HEAD] = False
    """Test: average with the prediction for the mirror image."""


@dataclass
class OptimHparams:
    """Optimizer and learning-rate schedule."""

    name: Annotated[
        str, OneOf(names.OPTIMIZERS), Kept("the state of one optimizer does not fit another")
    ] = "adamw"
    """adamw (for ViTs) | lars (Barlow Twins' own, for ResNets) | sgd."""
    lr: Annotated[float | str, Auto(), Between(0.0), Unless("trainer.tune_lr")] = "auto"
    """Peak learning rate. auto, for n images per step (batch_size x accumulate): adamw: pretraining
    1e-3 (DINO 5e-4, LeJEPA 2e-3) x sqrt(n / 256), on vit_demo barlow_twins 2e-3 and dino 1e-3 x
    sqrt(n / 128); a head on a frozen backbone 5e-3 x sqrt(n / 16), trained with a loaded backbone
    1e-4 x sqrt(n / 16); linear_probe 1e-3 x sqrt(n / 256). lars: pretraining 0.2 x n / 256, a head
    1 x n / 16, with a loaded backbone 0.1 x n / 16, linear_probe 1 x n / 256. sgd: pretraining 0.03
    x n / 256, a head 0.01 x n / 16, linear_probe 0.1 x n / 256. Pretraining from weights: 0.03
    times that with any optimizer; more made Barlow Twins unlearn a file within a hundred steps."""
    weight_decay: Annotated[float | str, Auto(), Between(0.0)] = "auto"
    """Applies to matrices, including learnt positions and tokens, as in DINO's own code; not to
    norms and biases, including Swin's bias tables. auto: 0.05 (adamw; 0.04 for DINO), 1.5e-6
    (lars), 1e-4 (sgd); linear_probe: 0."""
    final_weight_decay: Annotated[
        float | str, Auto(), Between(0.0), Needs("task", "dino", "dino_twins")
    ] = "auto"
    """Weight decay at the end of a cosine schedule. auto: 0.4 for adamw, else weight_decay."""
    momentum: Annotated[Fraction, Needs("optim.name", "lars", "sgd")] = 0.9
    """Momentum of the optimizer."""
    schedule: Annotated[str, OneOf(names.SCHEDULES)] = "cosine"
    """After the warm-up: cosine | poly (power 0.9), which end exactly with the run | constant."""
    warmup_epochs: Annotated[float | str, Auto(), Between(0.0)] = "auto"
    """Epochs of linear learning-rate warm-up from 0; may be a fraction. auto: a twentieth of the
    run, at least 1 epoch and at most 10, but no more than a fifth of the run."""
    final_lr_ratio: Annotated[Fraction, Needs("optim.schedule", "cosine", "poly")] = 0.001
    """Final learning rate as a share of the peak."""


@dataclass
class TrainerHparams:
    """Length, hardware and memory."""

    max_epochs: Annotated[
        int | str, Auto(), Between(1), TRAINS, HEAD_LEARNS, Unless("trainer.max_steps")
    ] = "auto"
    """Passes over the training images. auto: pretraining 40 on shapes, elsewhere 20,000 steps
    in 10 to 400 epochs; segmentation 3,000 steps (8,000 if the backbone is trained); linear_probe
    100 epochs. On a CPU a tenth of these steps. The length is printed before the run starts."""
    max_steps: Annotated[Count | None, TRAINS, HEAD_LEARNS] = None
    """Stop after this many optimizer steps instead; the schedule then ends there."""
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"] = "auto"
    """auto: bf16-mixed if the GPU has bfloat16, else 16-mixed from Volta on, else 32-true.
    bf16-mixed is refused on other GPUs. In mixed precision, cards that have TF32 multiply float32
    matrices in it, except when searching nearest neighbours. On a CPU, try bf16-mixed if lscpu
    lists avx512_bf16 or amx_bf16; otherwise it is slow."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """auto: the NVIDIA GPU if there is one, else the CPU. A card that torch cannot use is an error.
    mps: Apple's GPU; never tested."""
    devices: Annotated[int, Between(1, 1024), MAKES_PROCESSES] = 1
    """GPUs of this machine (CPU: processes). They share data.batch_size; gradients are those of one
    GPU with the whole batch, except for BatchNorm in the backbone."""
    num_nodes: Annotated[int, Between(1, 1024), MAKES_PROCESSES] = 1
    """Machines, each started by torchrun or srun with the same --run.name."""
    strategy: Annotated[Literal["auto", "ddp", "ddp_find_unused_parameters_true"], IN_TRAINING] = (
        "auto"
    )
    """Lightning's strategy. auto: ddp for several devices."""
    sync_batchnorm: Annotated[bool, SEVERAL_PROCESSES, IN_TRAINING] = False
    """BatchNorm over all GPUs (in the backbone: over one chunk of each); slower."""
    compile: Annotated[
        bool,
        PASSES_IMAGES,
        HEAD_LEARNS,
        BACKBONE_LEARNS | Needs("task", "dino", "dino_twins", "segmentation"),
    ] = False
    """Use torch.compile for the backbone's training pass; refused on Pascal cards. Chunks are
    recomputed uncompiled: no effect if tune_batch_size finds that chunks are needed."""
    chunk_size: Annotated[
        int | str | None, Auto(), Between(2), PRETRAINS, Unless("trainer.tune_batch_size")
    ] = "auto"
    """Images that pass the backbone at once. Memory depends on this, the result on batch_size
    (except that BatchNorm in the backbone, as in ResNets, sees a chunk). null: the whole batch.
    With a number, DINO takes one view after the other, so even the size of the whole batch saves
    much. auto: the whole batch if it fits into free memory, else 2, 4, 8, … as far as they fit (at
    most half of it), estimated from the memory of two images."""
    accumulate: Annotated[Count, TRAINS, HEAD_LEARNS, MAKES_EPOCHS] = 1
    """Gradient accumulation: the mean over this many batches. Exact for DINO without BatchNorm. NOT
    a larger batch for Barlow Twins and LeJEPA, whose loss is computed for each batch: use
    batch_size with chunk_size for that."""
    gradient_clip: Annotated[NonNegative, TRAINS, HEAD_LEARNS] = 0.0
    """Largest global gradient norm; 0: no clipping."""
    tune_batch_size: Annotated[bool, PRETRAINS, IN_TRAINING] = False
    """Before training, find the largest chunk_size that fits this machine, and use it."""
    tune_lr: Annotated[bool, TRAINS, HEAD_LEARNS, Needs("run.resume", "none")] = False
    """Before training, run Lightning's learning-rate finder, and use its value. For Barlow Twins it
    tends to be too low, because the loss is flat at first: use lr auto with a warm-up instead."""
    val_every_n_epochs: Annotated[
        int | str, Cadence(1, 200), Between(1), TRAINS, HEAD_LEARNS, VALIDATES
    ] = "auto"
    """Validate every n epochs. auto: every epoch, but at most 200 times."""
    limit_train_batches: Annotated[Count, TRAINS, HEAD_LEARNS, MAKES_EPOCHS] | None = None
    """Batches per training epoch; null: all."""
    limit_val_batches: Annotated[Natural, MEASURES] | None = None
    """Batches per validation; null: all, 0: no validation, and the last checkpoint is tested: more
    reliable if a tenth of the training images is too few to choose one."""
    limit_test_batches: Annotated[Count, Needs("task", "segmentation", "linear_probe")] | None = (
        None
    )
    """Batches of the test, for a try-out; null: all."""


@dataclass
class LoggerHparams:
    """wandb. Figures, metrics and the summary are always saved in the run folder as well."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: as set by the commands `wandb offline` and `wandb disabled`, else online with a key and
    a service that answers within seconds, else offline; the end of the run says how to upload it.
    WANDB_MODE, if set, overrides this; WANDB_RUN_GROUP and WANDB_TAGS work too."""
    project: Annotated[str | None, Unless("logger.mode", "disabled")] = None
    """wandb project: a plain name of up to 128 characters; null: WANDB_PROJECT, else twinsight."""
    entity: Annotated[str | None, Unless("logger.mode", "disabled")] = None
    """wandb team or user; null: WANDB_ENTITY, else the account's default."""


@dataclass
class AttentionMapsHparams:
    """What each head attends to (needs a backbone with attention)."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Often = "auto"
    """Draw every n epochs, and at the end; a frozen backbone once."""
    num_images: Count = 4
    """Images per figure."""
    blocks: list[int] = field(default_factory=lambda: [-1])
    """Blocks to draw, negative from the end: `-1` or `--callbacks.attention_maps.blocks 0 5 11`."""
    queries: Literal["auto", "cls", "mean"] = "auto"
    """cls: CLS to patches | mean: attention a patch receives, averaged over all patches |
    auto: cls if the pooled output is the CLS token, else mean."""
    mass: Annotated[float, Between(0.01, 0.99)] = 0.6
    """Masks show the fewest patches that hold this share of a head's attention."""
    image_size: Count | None = None
    """Side of the images in pixels; null: twice data.image_size, because larger images give finer
    maps. A multiple of the patch size."""


@dataclass
class AttentionQualityHparams:
    """How well attention finds objects, compared with chance (needs masks with a background)."""

    enabled: Enabled = True
    """Measure it."""
    every_n_epochs: Seldom = "auto"
    """Measure every n epochs, and at the end; a frozen backbone once. --evaluate does it too."""
    num_images: Annotated[Natural, IN_TRAINING] = 32
    """Training images with masks to measure during training; their labels are not trained on."""
    num_test_images: Annotated[Natural, SEGMENTS] = 200
    """Test images to measure in the test of a segmentation, evenly spaced."""
    mass: Annotated[float, Between(0.01, 0.99)] = 0.6
    """Masks hold this share of a head's attention; 0.6 is DINO's."""
    image_size: Count | None = None
    """Shorter side in pixels. null: 480 as in DINO's figure; for a data.image_size below 128, twice
    that."""


@dataclass
class CrossCorrelationHparams:
    """The cross-correlation matrix as a heat map (Barlow Twins)."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Often = "auto"
    """Draw every n epochs, and at the end."""
    num_samples: Annotated[int, Between(2)] = 128
    """Number N of images for each matrix, always the same ones, so that pictures compare."""


@dataclass
class EffectiveReceptiveFieldHparams:
    """Which pixels the centre of each layer depends on (Luo et al. 2016)."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Seldom = "auto"
    """Draw every n epochs (quickly: each image serves for one layer), and at the end exactly; a
    frozen backbone once, exactly."""
    num_images: Count = 8
    """Number of images to average. With fewer images than layers, every picture is exact."""
    num_layers: Annotated[Count, Unless("callbacks.effective_receptive_field.layers")] = 4
    """Number of layers, evenly spaced over the depth, including the last one."""
    layers: list[str] = field(default_factory=list)
    """Layers by name instead, e.g. blocks.0 blocks.11 (the first and the twelfth block), or
    layer4.2 of a ResNet."""


@dataclass
class FeatureMapsHparams:
    """Patch features as colours: their first three principal components."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Often = "auto"
    """Draw every n epochs, and at the end; a frozen backbone once."""
    num_images: Count = 6
    """Images per figure, which share the components."""


@dataclass
class SegmentationPredictionsHparams:
    """Image, truth, prediction and error, side by side."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Often = "auto"
    """Draw every n epochs; the test images are drawn at the end."""
    num_images: Count = 6
    """Images per figure, the same ones every time."""


@dataclass
class ClassIoUHparams:
    """IoU of every class as bars."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Often = "auto"
    """Draw every n epochs, and of the test at the end."""


@dataclass
class ConfusionMatrixHparams:
    """Which classes are confused with which."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Seldom = "auto"
    """Draw every n epochs, and of the test at the end."""


@dataclass
class EffectiveRankHparams:
    """How many dimensions the embeddings of held-out images use (RankMe)."""

    enabled: Enabled = True
    """Log val/effective_rank; takes a singular value decomposition per validation batch."""


@dataclass
class ImageCountsHparams:
    """test_counts.npz: the confusion of every test image, to compare two runs image by image."""

    enabled: Enabled = True
    """Write it."""


@dataclass
class ReportHparams:
    """report.html: settings, curves and pictures in one file that needs no network."""

    enabled: Enabled = True
    """Write it, at most once a minute and at the end."""


@dataclass
class HealthHparams:
    """Measures that tell a healthy run from a collapsed one, and alarms."""

    enabled: Enabled = True
    """Measure them."""
    every_n_steps: Count = 10
    """Measure every n steps; alarms are checked once an epoch, from step 20 on (in runs of at least
    300 steps, from step 50 on)."""


@dataclass
class GradientAgreementHparams:
    """Is the batch large enough? Compares the gradients of two batches."""

    enabled: Enabled = True
    """Measure it."""
    every_n_steps: Annotated[int | str, StepCadence(100, 5, 20), Between(1)] = "auto"
    """Measure every n steps; this takes about as long as two steps. auto: 100; in runs of fewer
    than 500 steps five times per run, but never more often than every 20 steps."""


@dataclass
class GradientHistogramsHparams:
    """Sizes of the gradients of every weight matrix, as a picture and as histograms of wandb."""

    enabled: Enabled = False
    """Draw them: if training stalls or jumps, they show in which layer."""
    every_n_epochs: Often = "auto"
    """Draw them at the first step, every n epochs and at the last step, unless early stopping ends
    the run."""


@dataclass
class OnlineProbeHparams:
    """k-NN and linear accuracy while a backbone is pretrained, on labelled *training* images."""

    enabled: Enabled = True
    """Measure it, if there are labels (see probe.data)."""
    every_n_epochs: Often = "auto"
    """Measure every n epochs, and at the end."""
    num_images: Annotated[int, Between(10)] = 1000
    """Number of labelled images; a fifth of them (by a hash of the names) are queries."""


@dataclass
class DenseKNNHparams:
    """Segmentation by nearest patches while a backbone is pretrained (Balažević et al. 2023).

    On *training* images with masks. Nothing is trained for it: it shows what pretraining learnt.
    """

    enabled: Enabled = True
    """Measure it."""
    every_n_epochs: Often = "auto"
    """Measure before the first step, every n epochs, and at the end."""
    num_images: Annotated[int, Between(10)] = 320
    """Images with masks; a fifth of them (by a hash of the names) is labelled by the others."""
    k: Count = 30
    """Number of nearest patches; all if there are fewer."""


@dataclass
class EmbeddingsHparams:
    """Images as points, coloured by class: principal components and, with scikit-learn, t-SNE."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Seldom = "auto"
    """Draw every n epochs, and at the end."""
    num_images: Annotated[int, Between(10)] = 500
    """Number of points."""


@dataclass
class ViewsHparams:
    """The augmented views the network sees: look at these first if a run does not learn."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Seldom = "auto"
    """Draw every n epochs."""
    num_images: Count = 6
    """Images per figure."""


@dataclass
class LearningCurvesHparams:
    """Loss and diagnostics over steps, each picture from the start of the run."""

    enabled: Enabled = True
    """Draw it."""
    every_n_epochs: Seldom = "auto"
    """Redraw every n epochs, and at the end."""


@dataclass
class EarlyStoppingHparams:
    """Stop if the measure that chooses best.ckpt is stuck: val/loss, val/miou, val/linear_accuracy.

    Not for DINO, whose loss is lowest after a collapse: there the last checkpoint counts.
    """

    enabled: Enabled = False
    """Stop early."""
    patience: Count = 50
    """Validations without improvement. To stop early, a run needs at least two validations more
    than that: it warns if it has fewer."""


def _has(callback: str) -> Needs:
    return Needs("task", *names.CALLBACKS[callback].tasks)


def _with_attention() -> Needs:
    # Not a constant: annotations are evaluated again after a part was added from outside.
    return Unless("backbone.name", *names.WITHOUT_ATTENTION)


@dataclass
class CallbackHparams:
    """Pictures, readouts and alarms during training; early stopping."""

    attention_maps: Annotated[AttentionMapsHparams, _has("attention_maps"), _with_attention()] = (
        _group(AttentionMapsHparams)
    )
    attention_quality: Annotated[
        AttentionQualityHparams,
        _has("attention_quality"),
        _with_attention(),
        Unless("data.name", *names.WITHOUT_MASKS),
    ] = _group(AttentionQualityHparams)
    effective_receptive_field: Annotated[
        EffectiveReceptiveFieldHparams, _has("effective_receptive_field"), HEAD_LEARNS
    ] = _group(EffectiveReceptiveFieldHparams)
    feature_maps: Annotated[FeatureMapsHparams, _has("feature_maps"), HEAD_LEARNS] = _group(
        FeatureMapsHparams
    )
    cross_correlation: Annotated[CrossCorrelationHparams, _has("cross_correlation")] = _group(
        CrossCorrelationHparams
    )
    segmentation_predictions: Annotated[
        SegmentationPredictionsHparams, _has("segmentation_predictions")
    ] = _group(SegmentationPredictionsHparams)
    class_iou: Annotated[ClassIoUHparams, _has("class_iou")] = _group(ClassIoUHparams)
    confusion_matrix: Annotated[ConfusionMatrixHparams, _has("confusion_matrix")] = _group(
        ConfusionMatrixHparams
    )
    effective_rank: Annotated[EffectiveRankHparams, _has("effective_rank"), VALIDATES] = _group(
        EffectiveRankHparams
    )
    health: Annotated[HealthHparams, _has("health")] = _group(HealthHparams)
    gradient_agreement: Annotated[
        GradientAgreementHparams, _has("gradient_agreement"), BACKBONE_LEARNS
    ] = _group(GradientAgreementHparams)
    gradient_histograms: Annotated[
        GradientHistogramsHparams, _has("gradient_histograms"), HEAD_LEARNS
    ] = _group(GradientHistogramsHparams)
    online_probe: Annotated[OnlineProbeHparams, _has("online_probe")] = _group(OnlineProbeHparams)
    dense_knn: Annotated[
        DenseKNNHparams, _has("dense_knn"), Unless("data.name", *names.WITHOUT_MASKS)
    ] = _group(DenseKNNHparams)
    embeddings: Annotated[EmbeddingsHparams, _has("embeddings")] = _group(EmbeddingsHparams)
    image_counts: Annotated[ImageCountsHparams, _has("image_counts")] = _group(ImageCountsHparams)
    views: Annotated[ViewsHparams, _has("views"), HEAD_LEARNS] = _group(ViewsHparams)
    learning_curves: LearningCurvesHparams = _group(LearningCurvesHparams)
    report: ReportHparams = _group(ReportHparams)
    early_stopping: Annotated[
        EarlyStoppingHparams, Unless("task", "dino", "dino_twins"), TRAINS, HEAD_LEARNS, VALIDATES
    ] = _group(EarlyStoppingHparams)


@dataclass
class Hparams:
    """A run."""

    task: Annotated[str, OneOf(names.TASKS), Kept("another task is another run")] = "barlow_twins"
    """What to train: barlow_twins, dino, dino_twins, lejepa (a backbone, without labels) |
    linear_probe (a classifier on a frozen one) | segmentation (a head on one)."""
    run: RunHparams = _group(RunHparams)
    data: DataHparams = _group(DataHparams)
    backbone: BackboneHparams = _group(BackboneHparams)
    barlow_twins: Annotated[
        BarlowTwinsHparams,
        Needs("task", "barlow_twins") | Needs("dino_twins.term", "barlow_twins"),
    ] = _group(BarlowTwinsHparams)
    dino: Annotated[DINOHparams, Needs("task", "dino", "dino_twins")] = _group(DINOHparams)
    dino_twins: Annotated[DINOTwinsHparams, Needs("task", "dino_twins")] = _group(DINOTwinsHparams)
    lejepa: Annotated[
        LeJEPAHparams, Needs("task", "lejepa") | Needs("dino_twins.term", "sigreg")
    ] = _group(LeJEPAHparams)
    head_information: Annotated[
        HeadInformationHparams, PRETRAINS, _with_attention(), BACKBONE_LEARNS
    ] = _group(HeadInformationHparams)
    probe: ProbeHparams = _group(ProbeHparams)
    segmentation: Annotated[SegmentationHparams, SEGMENTS] = _group(SegmentationHparams)
    optim: Annotated[OptimHparams, TRAINS, HEAD_LEARNS] = _group(OptimHparams)
    trainer: TrainerHparams = _group(TrainerHparams)
    logger: Annotated[LoggerHparams, IN_TRAINING] = _group(LoggerHparams)
    callbacks: CallbackHparams = _group(CallbackHparams)
