#!/usr/bin/env bash
# Chromium for the browser tests from Debian's packages, where it is missing and may be installed.
# Where it cannot be, this says so and the tests are skipped.
set -uo pipefail
if command -v chromium chromium-browser google-chrome >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; then
    exit 0
fi
echo "NOTICE: no Chromium here and it cannot be installed: the browser tests are skipped"
