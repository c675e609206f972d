#!/usr/bin/env bash
# Section 10 of RESULTS.md: what attention is worth to a segmentation head.
#
#   DATA=… RUNS=runs benchmarks/attention_fusion.sh [224|448]
#
# One run at a time, finished ones are skipped; two shells may share the work. On two CPU cores 224 px
# takes about two hours.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?folder of the data, see RESULTS.md}" "${RUNS:=runs}" "${PYTHON:=.venv/bin/python}"
size=${1:-224}
weights=$DATA/weights/vit_small_patch16_dino_layout_fp16.pth
off=()
for name in attention_maps attention_quality effective_receptive_field feature_maps views \
  segmentation_predictions class_iou confusion_matrix learning_curves report; do
  off+=("--callbacks.$name.enabled" false)
done

row() { # NAME settings…
  local name=$1
  shift
  for seed in 0 1 2; do
    [ -e "$RUNS/$name-s$seed" ] && continue
    "$PYTHON" main.py --experiment voc-attention --data.root "$DATA/VOCdevkit" \
      --backbone.weights "$weights" --run.dir "$RUNS" --run.name "$name-s$seed" --run.seed $seed \
      --logger.mode disabled "${off[@]}" "$@"
  done
}

controlled() { # NAME settings…: the row and its three controls
  row "$@"
  for control in shuffled uniform random_init; do
    row "$1-$control" "${@:2}" --segmentation.fusion_control $control
  done
}

features="--segmentation.fusion_carries features --segmentation.fusion_steps 1"
if [ "$size" = 224 ]; then
  row linear --backbone.layers last --segmentation.head linear
  row naive --backbone.layers last
  row naive4
  controlled fusion1 --segmentation.fusion fusion1
  controlled fusion2 --segmentation.fusion fusion2
  controlled fusion2-features --segmentation.fusion fusion2 $features
  controlled fusion3 --segmentation.fusion fusion3
  row fusion2-fusion3 --segmentation.fusion fusion2 fusion3
else
  large="--data.image_size 448 --data.fixed_scales 1.0 --trainer.max_epochs 6"
  row naive4-448 $large
  controlled fusion2-448 $large --segmentation.fusion fusion2
fi
