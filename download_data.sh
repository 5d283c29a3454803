#!/usr/bin/env bash
# Download the official BabyLM data into ./babylm_data (see src/data/download.py).
#
#   ./download_data.sh                  everything: 10M, 100M, dev, eval
#   ./download_data.sh 10M dev eval     some of it
#   ./download_data.sh --help           the options
#
# PYTHON chooses the interpreter. Relative paths count from this script's folder.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON="${PYTHON:-python}"

# This import fails before version 1.0, the oldest that the download works with.
if ! "$PYTHON" -c "from huggingface_hub.utils import http_stream_backoff" 2>/dev/null; then
    echo "download_data.sh: '$PYTHON' has no huggingface_hub of version 1.0 or newer." >&2
    echo "Install it (pip install 'huggingface_hub>=1.0'), or set PYTHON to an interpreter that has it." >&2
    exit 1
fi

exec "$PYTHON" -m src.data.download "$@"
