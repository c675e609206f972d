"""Checks combinations of settings that are valid one by one, but not together."""

from __future__ import annotations

from config.errors import ConfigError, as_typed
from config.hparams import Hparams
from config.resolve import learns_backbone, processes_of
from config.rules import get_leaf

# Largest distance between points of SIGReg's integral, whose integrand is as wide as exp(-t²/2).
# With larger distances it hardly sees a collapse: with 3 points up to 20 it is always 0.
_WIDEST_STEP = 1.5


def check_combinations(hparams: Hparams) -> None:
    """Checks settings whose valid values depend on each other.

    Args:
        hparams: with chosen names; every setting is valid by itself.

    Raises:
        ConfigError: names the settings, their values and what to do.
    """
    _check_crops(hparams)
    _check_split(hparams)
    _check_sizes(hparams)
    _check_head(hparams)
    _check_fusions(hparams)
    _check_loss_weights(hparams)
    _check_integral(hparams)
    _check_batch(hparams)


def _check_crops(hparams: Hparams) -> None:
    # Empty means `auto`.
    open_ones = ("dino.global_crops_scale", "dino.local_crops_scale", "barlow_twins.crop_scale")
    for path in (*open_ones, "lejepa.crop_scale"):
        scale = get_leaf(hparams, path)
        if not scale and path in open_ones:
            continue
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(
                f"--{path} {as_typed(scale)}: expected two shares of the image, smallest and "
                "largest, such as 0.05 0.4."
            )


def _check_split(hparams: Hparams) -> None:
    data = hparams.data
    if data.split == "trainaug" and data.name != "voc":
        raise ConfigError(f"--data.split trainaug: only voc has it, not {data.name}.")
    if hparams.task == "segmentation" and data.split in ("all", "all_minus_val"):
        raise ConfigError(
            f"--data.split {data.split}: segmentation needs masks, which train and trainaug have."
        )


def _check_sizes(hparams: Hparams) -> None:
    data, settings = hparams.data, hparams.segmentation
    for path in ("data.fixed_scales", "segmentation.test_scales"):
        if not get_leaf(hparams, path):
            raise ConfigError(f"--{path}: expected at least one number.")
    window, stride = settings.test_window, settings.test_stride
    if window is not None and stride is not None and window < stride:
        raise ConfigError(
            f"--segmentation.test_window {window} is smaller than --segmentation.test_stride "
            f"{stride}: pixels between the windows would never be labelled."
        )
    if isinstance(data.image_size, int) and data.image_size % settings.loss_stride:
        raise ConfigError(
            f"--data.image_size {data.image_size} is no multiple of --segmentation.loss_stride "
            f"{settings.loss_stride}."
        )


def _check_head(hparams: Hparams) -> None:
    remembers = hparams.task == "segmentation" and hparams.segmentation.head == "knn"
    if remembers and learns_backbone(hparams):
        raise ConfigError(
            "--segmentation.head knn trains nothing, so the backbone cannot be trained with it: it "
            "needs --backbone.freeze true, without --backbone.unfreeze_last."
        )


def _check_fusions(hparams: Hparams) -> None:
    settings = hparams.segmentation
    if len(set(settings.fusion)) < len(settings.fusion):
        raise ConfigError(f"--segmentation.fusion {as_typed(settings.fusion)}: each of them once.")
    control, fusions = settings.fusion_control, settings.fusion
    if control != "none" and fusions == ["fusion2"] and settings.fusion_edges == ["tokens"]:
        raise ConfigError(
            f"--segmentation.fusion_control {control} has no effect on --segmentation.fusion_edges "
            "tokens: they need no attention."
        )
    trained = {"mass", "shape", "diversity"} if learns_backbone(hparams) else set()
    trained |= {"affinity"} if "fusion2" in settings.fusion else set()
    trained |= {"mass", "shape"} if "fusion3" in settings.fusion else set()
    if settings.attention_loss and not trained & set(settings.attention_loss_terms):
        raise ConfigError(
            f"--segmentation.attention_loss {settings.attention_loss} has nothing to train: "
            f"{as_typed(settings.attention_loss_terms)} need --backbone.unfreeze_last 2 (mass, "
            "shape, diversity), fusion2 (affinity) or fusion3 (mass, shape)."
        )
    if settings.attention_loss and control == "random_init":
        raise ConfigError(
            "--segmentation.attention_loss trains attention, but --segmentation.fusion_control "
            "random_init reads the attention of a network that is not trained: choose one."
        )
    tested = settings.test_window is not None or settings.test_flip or settings.test_scales != [1.0]
    if tested and settings.fusion_control == "shuffled":
        raise ConfigError(
            "--segmentation.fusion_control shuffled tests whole images at one scale: it cannot be "
            "combined with test_window, test_scales or test_flip."
        )


def _check_loss_weights(hparams: Hparams) -> None:
    settings = hparams.segmentation
    if settings.loss_weights and len(settings.loss) != len(settings.loss_weights):
        raise ConfigError(
            f"--segmentation.loss_weights {as_typed(settings.loss_weights)}: expected one "
            f"weight for each loss ({as_typed(settings.loss)})."
        )
    if settings.loss_weights and not any(settings.loss_weights):
        raise ConfigError(
            f"--segmentation.loss_weights {as_typed(settings.loss_weights)}: if all are 0, "
            "nothing is trained."
        )

    method = hparams.barlow_twins
    terms = (method.invariance_weight, method.variance_weight, method.covariance_weight)
    if not any(terms):
        raise ConfigError(
            "--barlow_twins.invariance_weight, variance_weight and covariance_weight are all 0: "
            "nothing is trained."
        )


def _check_integral(hparams: Hparams) -> None:
    method = hparams.lejepa
    step = method.integration_limit / (method.knots - 1)
    if step > _WIDEST_STEP:
        raise ConfigError(
            f"--lejepa.knots {method.knots} up to --lejepa.integration_limit "
            f"{method.integration_limit:g} lie {step:.3g} apart, more than {_WIDEST_STEP:g}: "
            "SIGReg could not tell a Gaussian from a collapse. Give more knots, or a lower limit."
        )


def _check_batch(hparams: Hparams) -> None:
    data, trainer = hparams.data, hparams.trainer
    chunk, batch = trainer.chunk_size, data.batch_size
    if isinstance(chunk, int) and isinstance(batch, int) and chunk > batch:
        raise ConfigError(
            f"--trainer.chunk_size {trainer.chunk_size} exceeds --data.batch_size "
            f"{data.batch_size}: a chunk is a part of the batch. Lower it, or use null."
        )
    processes = processes_of(hparams)
    if isinstance(batch, int) and (batch % processes or batch < 2 * processes):
        raise ConfigError(
            f"--data.batch_size {data.batch_size} cannot be divided among {processes} processes "
            f"(devices {trainer.devices} x num_nodes {trainer.num_nodes}), at least two images "
            "each: choose a multiple."
        )
    if processes > 1 and (trainer.tune_batch_size or trainer.tune_lr):
        raise ConfigError("--trainer.tune_batch_size and tune_lr work on one device; tune first.")
    if trainer.compile and isinstance(chunk, int):
        raise ConfigError(
            "--trainer.compile has no effect together with --trainer.chunk_size: "
            "chunks are recomputed uncompiled. Choose one."
        )
