#!/usr/bin/env bash
# Single-source domain generalisation: scripts/generalisation.sh DATA WORK
#
# For each modality that has images of another site: ESP-MedSAM, DeSAM (whole image, grid of points)
# and a U-Net learn from the train split of one data set alone. All are scored on that set's test
# split and on images that none of them comes from: `unseen`, and the test splits of other data
# sets. Ends with the table. What is there is not made again: a run that was stopped goes on.
#
# MODALITIES="ct_liver colonoscopy" takes only these. ESP_TRAIN and DESAM_TRAIN are options of
# `train`, EVALUATE of `evaluate`; a try-out in minutes:
#   ESP_TRAIN="--set views=4 --set decoder_steps=2 --set joint_steps=2" \
#   DESAM_TRAIN="--set views=4 --set epochs=1" EVALUATE="--unet-views 8 --limit 2" \
#   MODALITIES=ct_liver scripts/generalisation.sh DATA /tmp/try
# Bundles that are there are not trained again: ESP_BUNDLE=DIR, DESAM_BUNDLE=DIR (where it has the
# modality), and UNETS=DIR, the work folder of scripts/baselines.sh. The starter bundle learned from
# one data set a modality, all but fundus_vessels; its decoder is shared with other modalities.
# On a GPU: ESP_TRAIN="--recipe gpu" DESAM_TRAIN="--set views=2000 --set epochs=24 --set batch=8"
set -euo pipefail

data=$1
work=$2
source "$(dirname "$0")/starter_data.sh"
mkdir -p "$work"
read -ra esp_train <<< "${ESP_TRAIN:-}"
read -ra desam_train <<< "${DESAM_TRAIN:-}"
read -ra evaluate <<< "${EVALUATE:-}"

for modality in ${MODALITIES:-ct_liver breast_ultrasound colonoscopy fundus_vessels}; do
  train=$(folders "$modality" train | tail -n 1)
  source=$(dirname "$train")
  name=$(basename "$source")
  own="$work/$modality"
  mkdir -p "$own"
  esp=$own/esp_medsam
  if [[ -f ${ESP_BUNDLE:-}/bundle.json ]]; then esp=$ESP_BUNDLE; fi
  if [[ ! -f $esp/bundle.json ]]; then
    "$esp_medsam" train --data "$modality=$train" --work "$own/esp_medsam_work" \
      --output "$own/esp_medsam" --name "$name" "${esp_train[@]}"
  fi
  desam=$own/desam
  if [[ -f ${DESAM_BUNDLE:-}/decoders/$modality.safetensors ]]; then desam=$DESAM_BUNDLE; fi
  if [[ ! -f $desam/bundle.json ]]; then
    "$esp_medsam" train --model desam --recipe starter --data "$modality=$train" \
      --work "$own/desam_work" --output "$own/desam" --name "$name" "${desam_train[@]}"
  fi
  for split in test unseen; do
    cases=()
    if [[ $split == test && -d $source/test ]]; then cases+=(--data "$source/test"); fi
    if [[ $split == unseen ]]; then
      for folder in $(folders "$modality" unseen) $(folders "$modality" test); do
        if [[ $folder != "$source"/* ]]; then cases+=(--data "$folder"); fi
      done
    fi
    if [[ ${#cases[@]} == 0 || -f $work/${modality}_$split.json ]]; then continue; fi
    "$esp_medsam" evaluate "${cases[@]}" --modality "$modality" --bundle "$esp" \
      --desam "$desam" --train-data "$train" --work "${UNETS:-$own/unet}" "${evaluate[@]}" \
      --json "$work/${modality}_$split.json"
  done
done
"$(dirname "$esp_medsam")/python" "$(dirname "$0")/baseline_table.py" "$work"
