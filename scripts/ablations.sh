#!/usr/bin/env bash
# What each part of the design gives: scripts/ablations.sh DATA WORK [options of train]
#
# Trains the same three modalities with the same recipe and seed, whole and with a part left out,
# and by distillation (a teacher, then controllers, each with the recipe's steps). Scores all on the
# first 60 test cases and prints the table of docs/ablations.md. Runs and reports that are there are
# not made again.
set -euo pipefail

data=$1
work=$2
shift 2
source "$(dirname "$0")/starter_data.sh"
modalities=(dermoscopy breast_ultrasound mr_left_ventricle)

train=()
for modality in "${modalities[@]}"; do
  for folder in $(folders "$modality" train); do train+=(--data "$modality=$folder"); done
done

run() { # NAME command options...
  local name=$1
  shift
  if [[ ! -f $work/$name/bundle/bundle.json ]]; then
    "$esp_medsam" "$@" "${train[@]}" --work "$work/$name" --output "$work/$name/bundle"
    # large, and of no use any more
    rm -rf "$work/$name"/{slices,features_*,embeddings,targets}
  fi
  for modality in "${modalities[@]}"; do
    local report="$work/$name/$modality.json" test=()
    for folder in $(folders "$modality" test); do test+=(--data "$folder"); done
    for case in $(left_out "$modality" test); do test+=(--leave-out "$case"); done
    if [[ ! -f $report ]]; then
      "$esp_medsam" evaluate "${test[@]}" --modality "$modality" --limit 60 \
        --bundle "$work/$name/bundle" --json "$report"
    fi
  done
}

run whole train "$@"
run no_controllers train --without controllers "$@"
run no_sppg train --without patch_prompt "$@"
run one_query train --without own_queries "$@"
run teacher distill teacher "$@"
run distilled distill controllers --teacher "$work/teacher/bundle" "$@"

"$(dirname "$esp_medsam")/python" "$(dirname "$0")/ablation_table.py" "$work" "${modalities[@]}"
