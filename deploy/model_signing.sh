#!/usr/bin/env bash
# Makes the environment of OpenSSF's model_signing tool, with which tests/registry/test_signatures.py exchanges
# signatures: deploy/model_signing.sh [FOLDER] (default .venv-model-signing). Run by `make test-long`, after `make setup`.
# It has an environment of its own because it brings 40 packages that nothing else here needs.
set -euo pipefail
cd "$(dirname "$0")/.."

FOLDER="${1:-.venv-model-signing}"
VENV="${VENV:-.venv}"
REQUIREMENTS=deploy/model_signing.txt

if ! cmp --silent "$REQUIREMENTS" "$FOLDER/requirements.txt"; then
    rm -rf "$FOLDER"
    "$VENV/bin/python" -m venv --without-pip "$FOLDER"
    "$VENV/bin/pip" --python "$FOLDER/bin/python" install --quiet --no-deps --no-compile --require-hashes \
        --requirement "$REQUIREMENTS"
    cp "$REQUIREMENTS" "$FOLDER/requirements.txt" # last: a broken installation is made anew
fi
