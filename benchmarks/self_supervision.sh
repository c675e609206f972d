#!/bin/bash
# The runs behind sections 7 to 9 of RESULTS.md:
#
#   DATA=… bash benchmarks/self_supervision.sh methods SEED | batches | crutches [sigreg] | lightly SEED
#
# Runs are written to $RUNS (default runs/). LIGHTLY: a Python that has lightly.
set -e
cd "$(dirname "$0")/.."
RUNS=${RUNS:-runs}
PYTHON=${PYTHON:-.venv/bin/python}
MAIN="$PYTHON main.py --run.dir $RUNS --logger.mode disabled --callbacks.report.enabled false"
SUBSET=$RUNS/cifar10-2000.npz

CIFAR="--data.name cifar10 --data.root $SUBSET --data.image_size 32
  --backbone.name resnet18 --backbone.stem cifar_maxpool"
QUICK="--callbacks.effective_receptive_field.enabled false --callbacks.feature_maps.enabled false
  --callbacks.views.enabled false --callbacks.embeddings.enabled false --trainer.precision bf16-mixed"
PRETRAIN="$QUICK --data.blur false --data.batch_size 64"
HEAD="--dino.hidden_dim 512"
CROPS="--dino.local_crops_number 2 $HEAD"
PROJECTOR="--barlow_twins.projector_dim 256 --barlow_twins.hidden_dim 256"

subset() {
  mkdir -p "$RUNS"
  [ -e "$SUBSET" ] || $PYTHON benchmarks/cifar_subset.py "$DATA/cifar10_subset.npz" --out "$SUBSET"
}

probe() { # NAME SEED [WEIGHTS]
  $MAIN --task linear_probe $CIFAR --data.batch_size 256 --trainer.max_epochs 50 \
    --run.seed "$2" --run.name "probe-$1-s$2" ${3:+--backbone.weights "$3"}
}

methods() { # SEED
  subset
  probe random "$1"
  $MAIN --task barlow_twins $CIFAR $PRETRAIN $PROJECTOR --trainer.max_epochs 10 \
    --run.seed "$1" --run.name "bt-s$1"
  $MAIN --task dino $CIFAR $PRETRAIN $CROPS --trainer.max_epochs 10 \
    --run.seed "$1" --run.name "dino-s$1"
  $MAIN --task dino_twins $CIFAR $PRETRAIN $CROPS $PROJECTOR --trainer.max_epochs 10 \
    --run.seed "$1" --run.name "twins-s$1"
  for method in bt dino twins; do probe "$method" "$1" "run:$method-s$1"; done
}

lightly() { # SEED
  subset
  ${LIGHTLY:?a Python that has lightly} benchmarks/lightly_barlow_twins.py "$SUBSET" --seed "$1" \
    --batch-size 64 --dim 256 --out "$RUNS/lightly-s$1.pth"
  probe lightly "$1" "$RUNS/lightly-s$1.pth"
}

crutches() { # [sigreg]
  local second=$PROJECTOR without name
  [ "${1:-}" != sigreg ] || second="--dino_twins.term sigreg"
  subset
  for crutch in none centering sharpening ema multi_crop; do
    case $crutch in
      none) without=$CROPS ;;
      multi_crop) without="$HEAD --dino.multi_crop false" ;;
      *) without="$CROPS --dino.$crutch false" ;;
    esac
    name=crutch${1:+-$1}-$crutch
    $MAIN --task dino_twins $CIFAR $PRETRAIN $second --trainer.max_epochs 5 \
      --callbacks.health.every_n_steps 5 --run.name "$name" $without
    $MAIN --task linear_probe $CIFAR --probe.kind knn --data.batch_size 256 \
      --run.name "knn-$name" --backbone.weights "run:$name"
  done
}

batches() {
  local vit="--data.name image_folder --data.root $DATA/imagenette --data.image_size 96
    --backbone.name vit_tiny"
  local train="$MAIN --task barlow_twins $vit $QUICK --optim.lr 5e-4 --optim.warmup_epochs 0.5
    --callbacks.cross_correlation.enabled false --callbacks.attention_maps.enabled false
    --callbacks.online_probe.enabled false
    --trainer.limit_val_batches 0"
  $train --data.batch_size 256 --trainer.chunk_size 32 --trainer.max_steps 20 --run.name exact-256
  $train --data.batch_size 32 --trainer.max_steps 20 --run.name 32-equal-steps
  $train --data.batch_size 32 --trainer.max_steps 160 --run.name 32-equal-images
  $train --data.batch_size 32 --trainer.accumulate 8 --trainer.limit_train_batches 16 \
    --trainer.max_steps 20 --run.name 32-accumulated-8
  $MAIN --task linear_probe $vit --probe.kind knn --data.batch_size 64 --run.name knn-random
  for arm in exact-256 32-equal-steps 32-equal-images 32-accumulated-8; do
    $MAIN --task linear_probe $vit --probe.kind knn --data.batch_size 64 --run.name "knn-$arm" \
      --backbone.weights "run:$arm"
  done
  $PYTHON benchmarks/matrices.py "$RUNS"/exact-256 "$RUNS"/32-equal-steps \
    "$RUNS"/32-equal-images "$RUNS"/32-accumulated-8 --samples 200 --split val \
    --out "$RUNS/matrices.png"
}

"$@"
