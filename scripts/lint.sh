#!/usr/bin/env bash
# Lint, format and types, in the environment that scripts/setup.sh made: what tests and commits both ask for.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
