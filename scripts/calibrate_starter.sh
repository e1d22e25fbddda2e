#!/usr/bin/env bash
# Fit how sure SPPG has to be that a structure is there: scripts/calibrate_starter.sh DATA BUNDLE
#
# On val, and on val images of the other modalities as what holds nothing. MODALITIES="a b" fits
# only these. To be run again after a modality was trained further; then score_starter.sh.
set -euo pipefail

data=$1
bundle=$2
source "$(dirname "$0")/starter_data.sh"

for modality in ${MODALITIES:-"${modalities[@]}"}; do
  options=(--modality "$modality" --bundle "$bundle" --limit 20)
  for folder in $(folders "$modality" val); do options+=(--data "$folder"); done
  if [[ ${options[*]} != *--data* ]]; then continue; fi
  for other in "${modalities[@]}"; do
    if [[ $other == "$modality" ]]; then continue; fi
    for folder in $(folders "$other" val); do options+=(--absent "$folder/images"); done
  done
  "$esp_medsam" calibrate "${options[@]}"
done
