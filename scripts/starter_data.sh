# Sourced by the scripts beside it: which data the starter bundle is trained and scored on.
# Expects `data`, the folder of <modality>/<data set>/<split>/{images,labels}.

esp_medsam=${ESP_MEDSAM:-.venv/bin/esp-medsam}

# mr_prostate is left out: the example of a new modality
modalities=(
  microscopy_nuclei fundus_vessels xray_chest ct_liver dermoscopy colonoscopy breast_ultrasound
  mr_hippocampus mr_left_ventricle mr_left_atrium
)

# Folders of a modality and split that are there, all data sets: folders MODALITY SPLIT
folders() {
  local folder
  for folder in "$data/$1"/*/"$2"; do
    if [[ -d $folder/images ]]; then echo "$folder"; fi
  done
}

# Train modalities that share nothing they learn, each in a run of its own below WORK, and put all
# that are done into WORK/bundle; what is done is not done again, a run that was stopped goes on:
#   one_by_one WORK NAME COMMAND...
# COMMAND is one of esp-medsam's, with its options. MODALITIES="a b" trains only these, so that
# several cores share the work: give each its modalities and the same WORK; who ends last puts all
# together.
one_by_one() {
  local work=$1 name=$2 modality folder options=() ready=()
  shift 2
  for modality in ${MODALITIES:-"${modalities[@]}"}; do
    if [[ -f $work/$modality/bundle/bundle.json ]]; then continue; fi
    options=(--work "$work/$modality" --output "$work/$modality/bundle" --name "$name")
    for folder in $(folders "$modality" train); do options+=(--data "$modality=$folder"); done
    "$esp_medsam" "$@" "${options[@]}"
  done
  for modality in "${modalities[@]}"; do
    if [[ -f $work/$modality/bundle/bundle.json ]]; then ready+=("$work/$modality/bundle"); fi
  done
  "$esp_medsam" weights merge "${ready[@]}" --output "$work/bundle" --name "$name"
}

# Large tensors are freed and taken again each step of a training: without this the allocator hands
# the pages back to the system every time.
keep_pages() {
  export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000
  export MALLOC_TOP_PAD_=200000000
}

# Cases that are not scored, and why: scripts/left_out.txt. left_out MODALITY SPLIT
left_out() {
  awk -v modality="$1" -v part="$2" '$1 == modality && $2 == part { print $3 }' \
    "$(dirname "${BASH_SOURCE[0]}")/left_out.txt"
}
