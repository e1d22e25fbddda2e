#!/usr/bin/env bash
# Fit how sure SPPG has to be that a structure is there: scripts/calibrate_starter.sh DATA BUNDLE
#
# On val of the modalities whose cases are volumes: in them whole slices are without it. MODALITIES=
# "a b" fits only these. To be run again after one was trained further; then score_starter.sh.
set -euo pipefail

data=$1
bundle=$2
source "$(dirname "$0")/starter_data.sh"

for modality in ${MODALITIES:-mr_hippocampus mr_left_atrium}; do
  options=(--modality "$modality" --bundle "$bundle" --limit 20)
  for folder in $(folders "$modality" val); do options+=(--data "$folder"); done
  "$esp_medsam" calibrate "${options[@]}"
done
