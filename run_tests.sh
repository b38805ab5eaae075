#!/usr/bin/env bash
# Set up what is missing, then run the checks and the whole test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh
prepare_environment .venv requirements.txt requirements-dev.txt
prepare_environment .venv/litellm requirements-litellm.txt
prepare_node tests/clients/node
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Three files at a time, which keeps two cores busy while tests wait; each with one thread for the model: threads that share
# a core wait for each other.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses 3 --dist loadfile "$@"
