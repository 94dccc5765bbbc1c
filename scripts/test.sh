#!/usr/bin/env bash
# What people and CI run: makes .venv, then lint, format, types and tests on CPU.
#   scripts/test.sh          everything that needs no GPU
#   scripts/test.sh fast     only the tests that need neither Ray nor training
#   scripts/test.sh PATH     some of them, as pytest takes its arguments
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_SILENT=true
export RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1
bash scripts/lint.sh
if [ "${1:-}" = fast ] || [ $# = 0 ]; then
  # One thread a test, a process per core; what the fast tests cover has its floor in pyproject.toml.
  .venv/bin/python -m pytest -m "not slow and not gpu" -n 2 --cov --cov-report=term "${@:2}"
fi
if [ $# = 0 ]; then
  # Two files at a time: runs wait for processes to start about half of their time.
  .venv/bin/python -m pytest -m "slow and not gpu" -n 2 --dist loadfile
elif [ "$1" != fast ]; then
  .venv/bin/python -m pytest -m "not gpu" "$@"
fi
