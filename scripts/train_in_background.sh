#!/usr/bin/env bash
# Train beside all other work: scripts/train_in_background.sh start|stop|status DATA WORK [options]
#
# `start` goes on from where the last run was, on all cores and at the lowest priority; `stop` ends
# it (what was not saved, at most a minute, is computed again); `status` says what is running and
# shows the last cycles. Options after WORK go to scripts/background_training.py, for example
#   scripts/train_in_background.sh start DATA runs/background --modalities ct_liver --steps 200
# WORK holds ledger.csv (recipe, views, val Dice by site before and after each cycle, seconds) and
# best/, the bundle of the best weights. It goes into the package by hand, after its scores:
#   scripts/score_starter.sh DATA WORK/best WORK/scores val test unseen
#   rm -r esp_medsam_app/weights/starter && cp -r WORK/best esp_medsam_app/weights/starter
# NICE=10 takes another priority than 19; PROCESSES=1 trains one modality at a time, not one a core.
set -euo pipefail

command=$1
data=$2
work=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
source "$here/starter_data.sh"
python=${PYTHON:-$here/../.venv/bin/python}
pid_file=$work/training.pid

running() { [[ -f $pid_file ]] && kill -0 "$(cat "$pid_file")" 2>/dev/null; }

case $command in
  start)
    if running; then
      echo "A training runs already (process $(cat "$pid_file"))."
      exit 0
    fi
    mkdir -p "$work"
    keep_pages
    export NICE=${NICE:-19} PROCESSES=${PROCESSES:-$(nproc)}
    # Linux schedules sessions against each other first, and processes within them second: a
    # session of its own takes the priority in both.
    setsid bash -c '
      echo "$NICE" >/proc/self/autogroup 2>/dev/null || true
      export OMP_NUM_THREADS=1
      for _ in $(seq "$PROCESSES"); do nice -n "$NICE" "$@" & sleep 5; done
      wait' background "$python" "$here/background_training.py" "$data" "$work" "$@" \
      </dev/null >>"$work/training.log" 2>&1 &
    echo $! >"$pid_file"
    echo "Training runs as process $!; it writes $work/training.log and $work/ledger.csv."
    ;;
  stop)
    if running; then
      group=$(cat "$pid_file")
      kill -- "-$group"
      while kill -0 -- "-$group" 2>/dev/null; do sleep 0.2; done
      echo "The training is stopped; start goes on from its last checkpoint."
    else
      echo "No training runs."
    fi
    rm -f "$pid_file"
    ;;
  status)
    if running; then echo "Running (process $(cat "$pid_file"))."; else echo "Not running."; fi
    find "$work" -maxdepth 2 -name progress.json -mmin -10 -exec cat {} \; -exec echo \;
    if [[ -f $work/ledger.csv ]]; then tail -n 12 "$work/ledger.csv"; fi
    ;;
  *)
    echo "usage: scripts/train_in_background.sh start|stop|status DATA WORK [options]" >&2
    exit 2
    ;;
esac
