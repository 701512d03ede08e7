#!/usr/bin/env bash
# The table of real results: pFedSAM, local and pooled training, through the simulator, one budget.
# Usage: benchmarks/real.sh OUT SEED TASK...   with PFEDSAM_DATA_ROOT (folder of brain_mri, nuclei) and PFEDSAM_WEIGHTS set.
set -euo pipefail
out=$1 seed=$2; shift 2
run() { # task method simulated-sites threads extra-settings...
  local task=$1 method=$2 sites=$3 threads=$4; shift 4
  local name=${task}_${method}_s${seed}
  [ -f "$out/$name/done" ] && return
  rm -rf "$out/$name" "$out/job_$name"
  pfedsam render "jobs/pfedsam_$task" "$out/job_$name" --no-code --sites "$sites" --set seed="$seed" "$@"
  mkdir -p "$out/job_$name/app/custom" && touch "$out/job_$name/app/custom/.keep"
  PFEDSAM_DATA=$PFEDSAM_DATA_ROOT/$task PFEDSAM_THREADS=$threads \
    nvflare simulator "$out/job_$name" -w "$out/$name" -t "$(tr ',' '\n' <<<"$sites" | wc -l)" >"$out/$name.log" 2>&1
  touch "$out/$name/done"
}
declare -A sites=([brain_mri]=tcga_cs,tcga_du,tcga_ht [nuclei]=fluo_256,fluo_520,histology,smear_1024)
mkdir -p "$out"
for task in "$@"; do run "$task" pfedsam "${sites[$task]}" 1; done
for task in "$@"; do run "$task" local "${sites[$task]}" 1 --set method=local; done
for task in "$@"; do run "$task" pooled pooled 1 --set method=fedavg --set data.pool=true; done
