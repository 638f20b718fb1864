#!/bin/sh
# Says in one line which Debian packages the build lacks; prints nothing when all is there.
# usage: prerequisites.sh PYTHON
#
# All that is missing is found in one go, so that one apt-get install is enough.
python=$1
packages=
missing=

need() { # need PACKAGE WHAT
    packages="$packages $1"
    missing="${missing:+$missing, }$2"
}

if ! command -v "$python" >/dev/null 2>&1 || ! version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
    need "python3 python3-venv python3-dev" "$python"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Python 3.11 or newer is needed, $python is $version: install a newer python3 (Debian 12 has 3.11), or name one with: make PYTHON=/path/to/python3"
    exit 0
else
    "$python" -c 'import venv, ensurepip' 2>/dev/null || need python3-venv "the venv module of $python"
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$include/Python.h" ] || need python3-dev "Python's headers ($include/Python.h)"
fi

if ! command -v "${CC:-gcc}" >/dev/null 2>&1; then
    need gcc "a C compiler (${CC:-gcc})"
elif ! printf '#include <stdint.h>\n#include <pthread.h>\n#include <linux/futex.h>\n' | "${CC:-gcc}" -fsyntax-only -x c - 2>/dev/null; then
    need libc6-dev "the C library's headers"
fi

[ -z "$missing" ] || echo "missing: $missing. Install with: apt-get install$packages"
