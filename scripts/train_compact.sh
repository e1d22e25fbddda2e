#!/usr/bin/env bash
# Train the compact profile: scripts/train_compact.sh DATA WORK [options of distill compact]
#
# DATA holds <modality>/<data set>/<split>/{images,labels}. The teacher is the starter bundle, or
# TEACHER. Each modality learns in a run of its own below WORK, and WORK/bundle has those that are
# done; stopping, and MODALITIES: see one_by_one in starter_data.sh.
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
keep_pages
teacher=${TEACHER:-$here/../esp_medsam_app/weights/starter}
one_by_one "$work" compact distill compact --teacher "$teacher" "$@"
