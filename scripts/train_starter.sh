#!/usr/bin/env bash
# Train the starter bundle: scripts/train_starter.sh DATA WORK [options of train]
#
# DATA holds <modality>/<data set>/<split>/{images,labels}. WORK receives slices, features,
# checkpoints, curves and the bundle; a run that was stopped goes on from there, so that it can be
# given in pieces (timeout 580 scripts/train_starter.sh ...) on a machine lent for minutes:
#   scripts/train_starter.sh DATA runs/gpu --recipe gpu
# MODALITIES="a b" trains only these.
# Scores come from scripts/score_starter.sh. The bundle is put into the package by hand, when its
# scores on val are better:
#   rm -r esp_medsam_app/weights/starter && cp -r WORK/bundle esp_medsam_app/weights/starter
set -euo pipefail

data=$1
work=$2
shift 2
source "$(dirname "$0")/starter_data.sh"

keep_pages
train=()
for modality in ${MODALITIES:-"${modalities[@]}"}; do
  for folder in $(folders "$modality" train); do train+=(--data "$modality=$folder"); done
done
"$esp_medsam" train "${train[@]}" --work "$work" --output "$work/bundle" --name starter "$@"
