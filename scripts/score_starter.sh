#!/usr/bin/env bash
# Score a bundle and write its model card: scripts/score_starter.sh DATA BUNDLE WORK SPLIT...
#
# For each split (val, test, unseen) and modality: mean Dice and the rest of `evaluate`.
# BESIDE=1 counts on test how often something is marked in images of other things, the unseen images
# of the other modalities. MODALITIES="a b" scores only these, LIMIT=12 the first cases of each.
# Reports lie in WORK; those that are there are not made again. Other models beside it:
# scripts/baselines.sh.
set -euo pipefail

data=$1
bundle=$2
work=$3
shift 3
source "$(dirname "$0")/starter_data.sh"
mkdir -p "$work"

for split in "$@"; do
  reports=()
  for modality in ${MODALITIES:-"${modalities[@]}"}; do
    report="$work/${modality}_$split.json"
    options=(--modality "$modality" --bundle "$bundle" --json "$report")
    if [[ -n ${LIMIT:-} ]]; then options+=(--limit "$LIMIT"); fi
    for folder in $(folders "$modality" "$split"); do options+=(--data "$folder"); done
    if [[ ${options[*]} != *--data* ]]; then continue; fi
    for name in $(left_out "$modality" "$split"); do options+=(--leave-out "$name"); done
    for other in "${modalities[@]}"; do
      if [[ $other == "$modality" || $split != test || ${BESIDE:-0} != 1 ]]; then continue; fi
      for folder in $(folders "$other" unseen); do options+=(--absent "$folder/images"); done
    done
    if [[ ! -f $report ]]; then "$esp_medsam" evaluate "${options[@]}"; fi
    reports+=(--report "$report")
  done
  "$esp_medsam" weights card --bundle "$bundle" "${reports[@]}" --split "$split"
done
