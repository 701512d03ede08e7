#!/usr/bin/env bash
# The leading rows at full size on a GPU, for as long as it is lent: benchmarks/gpu_sweep.sh OUT SECONDS
#
# The rows that matter most come first. What has not ended after SECONDS is lost. What has is in OUT/sweep.tar.gz, in the
# folders of sweep.py and unet.py. It needs PFEDSAM_DATA_ROOT and PFEDSAM_WEIGHTS. TASKS, SEEDS, SUITES, LANES, ROUNDS
# and STEPS change what it runs.
set -uo pipefail
out=$(realpath -m "$1") seconds=$2 here=$(realpath "$(dirname "$0")") runs=$(mktemp -d)
read -ra tasks <<< "${TASKS:-polyp_hospitals brain_mri nuclei_he breast_us}"
read -ra seeds <<< "${SEEDS:-0 1 2}"
read -ra suites <<< "${SUITES:-leading beside}"
mkdir -p "$out" "$runs/mps" "$runs/sweep"

# Many runs share the GPU. NVIDIA's MPS lets their kernels run side by side; without it they take turns.
export CUDA_MPS_PIPE_DIRECTORY=$runs/mps CUDA_MPS_LOG_DIRECTORY=$runs/mps
nvidia-cuda-mps-control -d || echo "no MPS: the runs take turns on the GPU"

for task in "${tasks[@]}"; do
  for way in local fedavg; do
    nice timeout "$seconds" python3 "$here/unet.py" --task "$task" --ways "$way" --seeds "${seeds[@]}" --beside \
      --steps "${STEPS:-1000}" --out "$runs/sweep" > "$out/unet_${task}_$way.log" 2>&1 &
  done
done
timeout "$seconds" python3 "$here/sweep.py" "$runs/sweep" --suite "${suites[@]}" --tasks "${tasks[@]}" \
  --seeds "${seeds[@]}" --lanes "${LANES:-20}" --recorded ${ROUNDS:+--rounds "$ROUNDS"} 2>&1 | tee "$out/sweep.log"
wait $(jobs -p)

cd "$runs/sweep" && find . \( -name results.json -o -name cases.json -o -name log.txt -o -path './*/unet_*' \) -type f -print0 |
  tar -czf "$out/sweep.tar.gz" --null -T -
echo quit | nvidia-cuda-mps-control || true
rm -rf "$runs"
