#!/usr/bin/env bash
# The runbook for a GPU: correctness against the processor first, then figures. One command, under ten
# minutes; it needs Python with torch, and adds what else is missing without touching torch.
#
#     perf/gpu.sh [--device cuda] [--out gpu.json] [--only PART …] [--tiny]
#
# The log is beside the JSON. Where there is no GPU: perf/gpu.sh --device pretend --tiny
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if ! "$PYTHON" -c "import open_clip, polars, pytest" 2>/dev/null; then
    kept=$(mktemp)
    "$PYTHON" -m pip freeze | grep -iE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+)==' > "$kept"
    "$PYTHON" -m pip install --quiet -c "$kept" -e ".[test]"
fi
out=gpu.json
for ((i = 1; i <= $#; i++)); do
    if [ "${!i}" = --out ]; then next=$((i + 1)); out=${!next}; fi
done
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -u perf/gpu.py "$@" 2>&1 | tee "${out%.json}.log"
