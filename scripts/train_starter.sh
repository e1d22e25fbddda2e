#!/usr/bin/env bash
# Train the starter bundle and score it: scripts/train_starter.sh DATA WORK [options of train]
#
# DATA holds <modality>/<data set>/{train,val}/{images,labels}. WORK receives views, features,
# checkpoints, reports and the bundle; a run that was stopped goes on from there, so that it can be
# given in pieces (timeout 580 scripts/train_starter.sh ...) on a machine lent for minutes.
# The bundle is put into the package by hand, when its scores are better:
#   rsync --archive --delete WORK/bundle/ esp_medsam_app/weights/starter/
set -euo pipefail

data=$1
work=$2
shift 2
esp_medsam=${ESP_MEDSAM:-.venv/bin/esp-medsam}
# modality and its data sets
sets=(
  "microscopy_nuclei dsb2018"
  "fundus_vessels chase_db1 fives"
  "xray_chest covid_radiologists"
  "ct_liver msd_liver_slices"
)

# Large tensors are freed and taken again each step: without this the allocator hands the pages
# back to the system every time.
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000
export MALLOC_TOP_PAD_=200000000

folders() { # split modality data-set...
  local split=$1 modality=$2
  shift 2
  for name in "$@"; do echo "$data/$modality/$name/$split"; done
}

train=()
for line in "${sets[@]}"; do
  read -r modality names <<<"$line"
  for folder in $(folders train "$modality" $names); do train+=(--data "$modality=$folder"); done
done
"$esp_medsam" train "${train[@]}" --work "$work" --output "$work/bundle" --name starter "$@"

reports=()
for line in "${sets[@]}"; do
  read -r modality names <<<"$line"
  val=()
  for folder in $(folders val "$modality" $names); do val+=(--data "$folder"); done
  "$esp_medsam" evaluate "${val[@]}" --modality "$modality" --bundle "$work/bundle" \
    --json "$work/$modality.json"
  reports+=(--report "$work/$modality.json")
done
"$esp_medsam" weights card --bundle "$work/bundle" "${reports[@]}" --split val
