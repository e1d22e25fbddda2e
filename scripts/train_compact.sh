#!/usr/bin/env bash
# Train the compact profile: scripts/train_compact.sh DATA WORK [options of distill compact]
#
# DATA holds <modality>/<data set>/<split>/{images,labels}. The teacher is the starter bundle, or
# TEACHER. Each modality learns in a run of its own below WORK, and WORK/bundle has those that are
# done. A run that was stopped goes on. MODALITIES="a b" trains only these, so that several cores
# share the work: give each its modalities and the same WORK; who ends last puts all together.
# Then, as for the starter bundle:
#   MODALITIES="mr_hippocampus mr_left_atrium" scripts/calibrate_starter.sh DATA WORK/bundle
#   scripts/score_starter.sh DATA WORK/bundle WORK/scores val test unseen
# The bundle is put into the package by hand:
#   rm -rf esp_medsam_app/weights/starter_compact
#   cp -r WORK/bundle esp_medsam_app/weights/starter_compact
set -euo pipefail

data=$1
work=$2
shift 2
here=$(dirname "$0")
source "$here/starter_data.sh"
teacher=${TEACHER:-$here/../esp_medsam_app/weights/starter}

# as in train_starter.sh
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000
export MALLOC_TOP_PAD_=200000000

for modality in ${MODALITIES:-"${modalities[@]}"}; do
  run=$work/$modality
  if [[ -f $run/bundle/bundle.json ]]; then continue; fi
  options=()
  for folder in $(folders "$modality" train); do options+=(--data "$modality=$folder"); done
  "$esp_medsam" distill compact --teacher "$teacher" "${options[@]}" \
    --work "$run" --output "$run/bundle" --name compact "$@"
done

done_ones=()
for modality in "${modalities[@]}"; do
  if [[ -f $work/$modality/bundle/bundle.json ]]; then done_ones+=("$work/$modality/bundle"); fi
done
"$esp_medsam" weights merge "${done_ones[@]}" --output "$work/bundle" --name compact
