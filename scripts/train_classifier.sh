#!/usr/bin/env bash
# Fit and judge what reads the modality from an image:
#   scripts/train_classifier.sh DATA BUNDLE WORK [options of classifier train]
#
# DATA holds <modality>/<data set>/<split>/images. The classifier goes into the folder BUNDLE, with
# its figures on test and unseen. WORK keeps features and reports; a run that was stopped goes on
# from there. Modalities that the bundle lacks are told apart, too. NONE="dir dir" are images of no
# modality, about which it has to ask.
set -euo pipefail

data=$1
bundle=$2
work=$3
shift 3
source "$(dirname "$0")/starter_data.sh"
mkdir -p "$work"

options=()
for modality in "${modalities[@]}"; do
  for folder in $(folders "$modality" train); do options+=(--data "$modality=$folder"); done
  for folder in $(folders "$modality" val); do options+=(--val "$modality=$folder"); done
done
"$esp_medsam" classifier train "${options[@]}" --bundle "$bundle" --work "$work/features" "$@"

for split in test unseen; do
  options=(--json "$work/$split.json" --keep "$split")
  for modality in "${modalities[@]}"; do
    for folder in $(folders "$modality" "$split"); do options+=(--data "$modality=$folder"); done
  done
  if [[ $split == test ]]; then
    for folder in ${NONE:-}; do options+=(--data "none=$folder"); done
  fi
  "$esp_medsam" classifier evaluate "${options[@]}" --bundle "$bundle" --limit "${LIMIT:-60}"
done
