#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Usage: tools/preflight.sh [PYTHON]. Checks what a build needs and a fresh Debian lacks.
# If something is missing: one line that names the packages to install, and exit status 1.

python=${1:-python3}
packages=

if ! command -v "$python" >/dev/null 2>&1; then
    packages="python3 python3-venv python3-dev"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "xenpt needs Python 3.11 or newer, $python is $("$python" -V 2>&1); try: make PYTHON=python3.11" >&2
    exit 1
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$include/Python.h" ] || packages="$packages python3-dev"
fi
if [ -n "${CC:-}" ]; then
    compiler=$CC
else
    compiler=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC"))' 2>/dev/null)
fi
# The compiler may come with options, as in "gcc -pthread": only its first word is a program.
command -v "${compiler%% *}" >/dev/null 2>&1 || packages="$packages gcc"

[ -z "$packages" ] && exit 0
echo "xenpt: something to build with is missing; install it with: sudo apt-get install -y" $packages >&2
exit 1
