#!/usr/bin/env bash
# Train on a GPU machine that is lent for one command of ten minutes and has no network:
#   scripts/train_on_gpu.sh pack DATA [WORK] [options]     here: fill gpu_run/carried
#   scripts/train_on_gpu.sh run [--minutes 9] [options]    there: train, write to $OUT or --output
#   scripts/train_on_gpu.sh unpack [RESULTS [WORK]]        here: put files back, use the results
# `pack` moves tracked files that the machine does not need to gpu_run/aside until `unpack`. WORK is
# the folder of scripts/train_in_background.sh: its best weights are the start, and `unpack` puts
# what was learned into them. docs/training.md says more; --help tells all options.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
command=${1:?"usage: scripts/train_on_gpu.sh pack DATA [WORK] | run | unpack [RESULTS [WORK]]"}
shift
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}

case $command in
  pack)
    set -- --left-out "$here/scripts/left_out.txt" "$@"
    ;;
  unpack) ;;
  run)
    PYTHON=${PYTHON:-python3}
    # what the machine lacks comes along as wheels; the working tree is not installed
    if ! "$PYTHON" -c 'import pydantic, segment_anything' 2>/dev/null; then
      site=$(mktemp -d)
      trap 'rm -rf "$site"' EXIT
      "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --target "$site" "$here"/gpu_run/carried/wheels/*.whl
      export PYTHONPATH=$PYTHONPATH:$site
    fi
    export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
    ;;
  *)
    echo "There is no command $command: use pack, run or unpack." >&2
    exit 2
    ;;
esac
"${PYTHON:-$here/.venv/bin/python}" -m esp_medsam_app.gpu_machine "$command" --root "$here" "$@"
