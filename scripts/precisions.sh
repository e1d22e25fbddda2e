#!/usr/bin/env bash
# What reduced precision costs in Dice: scripts/precisions.sh DATA WORK [options of evaluate]
#
# Each modality's val split (its first 30 images, or 2 volumes; IMAGES and VOLUMES say otherwise) by
# the fast path in float32, which is the plain one's function to rounding, and by others of this
# machine. Options choose the weights: --bundle DIR or --profile NAME. MODALITIES="a b" takes only
# these, WAYS="plain_float32 fast_float16" these ways; the first is what the others are compared
# with. Reports lie in WORK; those that are there are not made again. Ends with the table of
# scripts/precision_table.py.
set -euo pipefail

data=$1
work=$2
shift 2
source "$(dirname "$0")/starter_data.sh"
mkdir -p "$work"

ways=${WAYS:-fast_float32 fast_bfloat16 openvino_bfloat16}
for modality in ${MODALITIES:-"${modalities[@]}"}; do
  cases=()
  for folder in $(folders "$modality" val); do cases+=(--data "$folder"); done
  for name in $(left_out "$modality" val); do cases+=(--leave-out "$name"); done
  limit=${IMAGES:-30}
  if compgen -G "${cases[1]}/images/*.nii*" > /dev/null; then limit=${VOLUMES:-2}; fi
  for way in $ways; do
    report=$work/${modality}_$way.json
    if [[ -f $report ]]; then continue; fi
    path=(--fast)
    case $way in
      plain_*) path=(--plain) ;;
      openvino_*) path=(--runtime openvino) ;;
    esac
    "$esp_medsam" evaluate "${cases[@]}" --modality "$modality" --limit "$limit" \
      "${path[@]}" --precision "${way#*_}" --json "$report" "$@"
  done
done
"$(dirname "$esp_medsam")/python" "$(dirname "$0")/precision_table.py" "$work" $ways
