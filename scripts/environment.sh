# Sourced by start_server.sh and run_tests.sh: makes virtual environments and installs into them what files pin.

fail() {
    echo "voxtral-local: $1" >&2
    exit 1
}

# The first of the usual names that is a Python from 3.11 to 3.13.
find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    local python venv=$1
    python=$(find_python) || fail "Python 3.11, 3.12 or 3.13 is needed. Install one (apt install python3.12 python3.12-venv, or brew install python@3.12), or set PYTHON to its path."
    "$python" -m venv "$venv" >/dev/null 2>&1 || fail "'$python -m venv' does not work. On Debian or Ubuntu: apt install python3-venv."
}

# Room for PyTorch and its friends: 2.3 GB on the CPU, less on macOS, more where pip brings CUDA along.
check_disk() {
    local free_kb
    free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
    [ "$free_kb" -gt 3000000 ] || fail "less than 3 GB are free in $PWD. Make room and start again."
}

# prepare_environment FOLDER FILE...: a virtual environment in FOLDER with what the files pin. A stamp named after the
# pinned versions says that they are installed, so a second start needs no network.
prepare_environment() {
    local venv=$1 stamp file options=()
    shift
    stamp="$venv/installed-$(cat "$@" | cksum | tr ' ' '-')"
    if [ -x "$venv/bin/python" ] && [ -f "$stamp" ]; then
        return
    fi
    check_disk
    [ -x "$venv/bin/python" ] || make_venv "$venv"
    echo "Installing dependencies into $venv; the first time this takes some minutes ..."
    for file in "$@"; do options+=(-r "$file"); done
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${options[@]}" \
        || fail "pip could not install the dependencies (see above). Check the network and the disk, and run this again."
    touch "$stamp"
}

# prepare_node FOLDER: what its package-lock.json pins. Without npm the tests that need it are skipped, or fail in CI.
prepare_node() {
    local folder=$1 stamp
    stamp="$folder/node_modules/installed-$(cksum < "$folder/package-lock.json" | tr ' ' '-')"
    if [ -f "$stamp" ] || ! command -v npm >/dev/null; then
        return
    fi
    echo "Installing Node packages into $folder ..."
    (cd "$folder" && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error) \
        || fail "npm could not install the Node clients (see above). Check the network and the disk, and run this again."
    touch "$stamp"
}
