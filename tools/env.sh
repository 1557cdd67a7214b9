#!/usr/bin/env bash
# Makes the environment in $1. Torch comes first and pinned. On a machine without an NVIDIA GPU torch's CPU build is
# asked for: uv knows where that is; pip takes what its index offers, so without uv a Linux laptop is warned.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (make PYTHON=python3.12 ...)" >&2; exit 2; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
torch=$(grep '^torch==' constraints.txt)
has_gpu=no
command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && has_gpu=yes

installed() { "$venv/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '${torch#torch==}')" 2>/dev/null; }
with_uv() { command -v uv >/dev/null 2>&1 && VIRTUAL_ENV="$venv" uv pip install --torch-backend "$1" "$torch"; }

if ! installed; then
  backend=cpu
  [ "$has_gpu" = yes ] && backend=auto
  if ! with_uv "$backend"; then
    if [ "$has_gpu" = no ] && [ "$(uname -s)" = Linux ]; then
      echo "note: without uv, pip may bring torch's CUDA build (gigabytes). 'pip install uv' first gets the CPU build." >&2
    fi
    "$venv/bin/python" -m pip install --quiet "$torch"
  fi
fi
"$venv/bin/python" -m pip install --quiet -c constraints.txt -e '.[dev]'
