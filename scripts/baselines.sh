#!/usr/bin/env bash
# Other models beside a bundle on the same cases: scripts/baselines.sh DATA BUNDLE WORK
#
# LiteMedSAM with the reference's box and with the whole image as box, and a U-Net trained from
# nothing on the same train split with as many views as the bundle saw, each once. The first 60
# images of test and unseen, or 4 volumes. MODALITIES="a b" takes only these. U-Nets and reports
# lie in WORK; those that are there are not made again. scripts/baseline_table.py prints them.
set -euo pipefail

data=$1
bundle=$2
work=$3
source "$(dirname "$0")/starter_data.sh"
mkdir -p "$work"

for modality in ${MODALITIES:-"${modalities[@]}"}; do
  train=()
  for folder in $(folders "$modality" train); do train+=(--train-data "$folder"); done
  for split in test unseen; do
    cases=()
    for folder in $(folders "$modality" "$split"); do cases+=(--data "$folder"); done
    if [[ ${#cases[@]} == 0 || -f $work/${modality}_$split.json ]]; then continue; fi
    for name in $(left_out "$modality" "$split"); do cases+=(--leave-out "$name"); done
    limit=60
    if compgen -G "${cases[1]}/images/*.nii*" > /dev/null; then limit=4; fi
    "$esp_medsam" evaluate "${cases[@]}" --modality "$modality" --bundle "$bundle" \
      --limit "$limit" --baselines "${train[@]}" --work "$work" \
      --json "$work/${modality}_$split.json"
  done
done
