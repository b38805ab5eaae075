#!/usr/bin/env bash
# Set up what is missing, then serve. Options are those of main.py: --demo, --no-download, --host, --port.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh
prepare_environment .venv requirements.txt
exec .venv/bin/python main.py "$@"
