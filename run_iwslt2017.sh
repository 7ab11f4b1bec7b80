#!/usr/bin/env bash
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/scripts/run_eval.py" iwslt2017 "$@"
