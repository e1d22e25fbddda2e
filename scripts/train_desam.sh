#!/usr/bin/env bash
# Train DeSAM's starter bundle, of the volumes: scripts/train_desam.sh DATA WORK [options of train]
#
# DATA holds <modality>/<data set>/<split>/{images,labels}. Each modality learns in a run of its own
# below WORK, and WORK/bundle has those that are done; stopping, and MODALITIES: see one_by_one in
# starter_data.sh. On a GPU: --set views=2000 --set epochs=24 --set batch=8
# Then:
#   MODALITIES=VOLUMES scripts/score_starter.sh DATA WORK/bundle WORK/scores val test unseen
# with the names below for VOLUMES. The bundle is put into the package by hand:
#   rm -rf esp_medsam_app/weights/starter_desam
#   cp -r WORK/bundle esp_medsam_app/weights/starter_desam
set -euo pipefail

data=$1
work=$2
shift 2
source "$(dirname "$0")/starter_data.sh"
keep_pages
MODALITIES=${MODALITIES:-ct_liver mr_hippocampus mr_left_ventricle mr_left_atrium}
one_by_one "$work" desam train --model desam --recipe starter "$@"
