#!/usr/bin/env bash
# PostgreSQL, for the registry's tests alone: run by `make test`, never by `make setup`. Does nothing where it is installed
# already; installs it where this is root on Debian or Ubuntu (in CI); elsewhere its tests are skipped, which it says.
set -euo pipefail

say() { printf 'postgresql: %s\n' "$*"; }

if ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || command -v initdb > /dev/null; then
    exit
fi
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    say "installing it with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    if apt-get update -qq > /dev/null && apt-get install -y -qq --no-install-recommends postgresql > /dev/null; then
        exit
    fi
fi
say "not installed, so its tests will be skipped (Debian, Ubuntu: apt-get install postgresql)"
