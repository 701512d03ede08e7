#!/usr/bin/env bash
# The leading rows at full size on a GPU, for as long as it is lent: benchmarks/gpu_sweep.sh OUT SECONDS
#
# The rows that matter most come first. OUT/sweep.tar.gz then holds what has ended, in the folders of sweep.py and
# unet.py. A second call with the same OUT goes on from there. It needs PFEDSAM_DATA_ROOT and PFEDSAM_WEIGHTS. TASKS,
# SEEDS, SUITES, LANES, ROUNDS and STEPS change what it runs.
set -uo pipefail
out=$(realpath -m "$1") seconds=$2 here=$(realpath "$(dirname "$0")") runs=$(mktemp -d)
read -ra tasks <<< "${TASKS:-polyp_hospitals brain_mri nuclei_he breast_us}"
read -ra seeds <<< "${SEEDS:-0 1 2}"
read -ra suites <<< "${SUITES:-leading beside}"
mkdir -p "$out" "$runs/mps" "$runs/sweep"
[ ! -e "$out/sweep.tar.gz" ] || tar -xzf "$out/sweep.tar.gz" -C "$runs/sweep"

gpu() { python3 -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; }

# Many runs share the GPU. NVIDIA's MPS lets their kernels run side by side; without it they take turns.
export CUDA_MPS_PIPE_DIRECTORY=$runs/mps CUDA_MPS_LOG_DIRECTORY=$runs/mps
if ! { nvidia-cuda-mps-control -d && gpu; }; then
  echo "no MPS: the runs take turns on the GPU"
  unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  gpu || { echo "expected a GPU; came none; to mend it: run sweep.py" >&2; exit 1; }
fi

for task in "${tasks[@]}"; do
  for way in local fedavg; do
    nice timeout "$seconds" python3 "$here/unet.py" --task "$task" --ways "$way" --seeds "${seeds[@]}" --beside \
      --steps "${STEPS:-1000}" --out "$runs/sweep" > "$out/unet_${task}_$way.log" 2>&1 &
  done
done
timeout "$seconds" python3 "$here/sweep.py" "$runs/sweep" --suite "${suites[@]}" --tasks "${tasks[@]}" \
  --seeds "${seeds[@]}" --lanes "${LANES:-20}" --recorded ${ROUNDS:+--rounds "$ROUNDS"} 2>&1 | tee "$out/sweep.log"
ended=${PIPESTATUS[0]}  # 124: the time was up
wait $(jobs -p)

cd "$runs/sweep" || exit 1
find . \( -name results.json -o -name cases.json -o -name log.txt -o -path './*/unet_*' \) -type f -print0 |
  tar -czf "$out/sweep.tar.gz" --null -T -
[ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ] || echo quit | nvidia-cuda-mps-control
rm -rf "$runs"
exit "$((ended == 124 ? 0 : ended))"
