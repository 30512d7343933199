#!/bin/bash
# Checks and measures Qohort on a GPU within 8 minutes: exactness for cohorts of 1, 5, 30 and 256, all agents side by
# side, the tests marked gpu, and then the speed of cohorts of 1 to 4,096. What does not fit into EXACTNESS_S seconds for
# all, or SPEED_S for one environment, is left out: cohorts of 1,024 need more. On a machine without network, put the
# wheels of the missing packages into .whl/ first: pip download --no-deps -d .whl hydra-core omegaconf gymnasium
# farama-notifications minatar ale-py, and pip wheel --no-deps -w .whl antlr4-python3-runtime==4.9.3
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-build/gpu}
mkdir -p "$OUT"
if ls .whl/*.whl >/dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target build/gpu_site .whl/*.whl
  export PYTHONPATH=$PWD/build/gpu_site
fi
export PYTHONPATH=$PWD/src:${PYTHONPATH:-} PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
export TMPDIR=/dev/shm TORCHINDUCTOR_COMPILE_THREADS=2
parts=$(mktemp -d)
for name in $(python3 benchmarks/gpu.py names); do
  timeout "${EXACTNESS_S:-200}" python3 benchmarks/gpu.py exactness "$name" 1 5 30 256 >"$parts/$name" 2>&1 &
done
timeout "${EXACTNESS_S:-200}" python3 -m pytest -m gpu -q -n 4 tests/test_devices.py >"$OUT/tests.txt" 2>&1 &
wait
cat "$parts"/* >"$OUT/exactness.txt"
grep -h ' members: ' "$OUT/exactness.txt"
tail -5 "$OUT/tests.txt"
unset TORCHINDUCTOR_COMPILE_THREADS
for name in cartpole breakout pong_dqn pong_pqn; do
  case $name in pong*) sizes="1 5" ;; *) sizes="1 30 256 1024 4096" ;; esac
  timeout "${SPEED_S:-60}" python3 benchmarks/gpu.py speed $name $sizes 2>&1 | tee "$OUT/speed_$name.txt"
done
