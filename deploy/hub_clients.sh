#!/usr/bin/env bash
# Makes the environments of the Hub clients that tests/hub_clients drives: deploy/hub_clients.sh [FOLDER] (default
# .venv-clients). Run by `make test`, after `make setup`; it takes seconds, and again only what changed.
#
# Each deploy/hub_clients/NAME.txt becomes the environment FOLDER/NAME, checked by hash. Those with hf_xet get a sibling
# without it, FOLDER/<hub release>-plain, because a client without hf_xet uploads in another way.
set -euo pipefail
cd "$(dirname "$0")/.."

FOLDER="${1:-.venv-clients}"
VENV="${VENV:-.venv}"

say() { printf 'hub clients: %s\n' "$*"; }

make_environment() { # make_environment NAME REQUIREMENTS: anew, unless it was made from these very requirements
    local environment="$FOLDER/$1" requirements=$2
    if cmp --silent "$requirements" "$environment/requirements.txt"; then
        return
    fi
    say "$1"
    rm -rf "$environment"
    "$VENV/bin/python" -m venv --without-pip "$environment"
    "$VENV/bin/pip" --python "$environment/bin/python" install --quiet --no-deps --no-compile --require-hashes \
        --requirement "$requirements"
    cp "$requirements" "$environment/requirements.txt" # last: a broken installation is made anew
}

mkdir -p "$FOLDER"
plain=$(mktemp)
trap 'rm -f "$plain"' EXIT
for requirements in deploy/hub_clients/*.txt; do
    name=$(basename "$requirements" .txt)
    make_environment "$name" "$requirements"
    awk '/^[A-Za-z0-9]/ { keep = !/^hf-xet==/ } /^#/ { keep = 1 } keep' "$requirements" > "$plain"
    make_environment "${name%-xet-*}-plain" "$plain"
done
