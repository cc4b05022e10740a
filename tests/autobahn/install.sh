#!/usr/bin/env bash
# Installs the Autobahn test suite, which needs Python 2.7, into a directory of its own.
set -euo pipefail

target=$1
here=$(dirname "$0")

# pyenv puts a python2.7 on PATH that only works where 2.7 is selected, so each one is tried.
candidates() {
    if [[ -n ${PYTHON27:-} ]]; then
        echo "$PYTHON27"
        return
    fi
    echo python2.7
    if command -v pyenv >/dev/null; then
        ls -d "$(pyenv root)"/versions/2.7*/bin/python2.7 2>/dev/null || true
    fi
}

python27=
while read -r candidate; do
    if "$candidate" -c 'import sys; assert sys.version_info[:2] == (2, 7)' 2>/dev/null; then
        python27=$("$candidate" -c 'import sys; print(sys.executable)')
        break
    fi
done < <(candidates)

if [[ -z $python27 ]]; then
    cat >&2 <<'TEXT'
Autobahn: no Python 2.7 was found, and its test suite runs on nothing newer.
Install one (such as with `pyenv install 2.7.18`), or name one with PYTHON27=/path/to/python2.7.
To go without: AUTOBAHN=skip.
TEXT
    exit 1
fi

echo "Autobahn: installing the suite with $python27"
rm -rf "$target/tool" "$target/python"
"${PYTHON:-python3}" -m venv "$target/tool"
# The last version that can make an environment for 2.7.
"$target/tool/bin/python" -m pip install --quiet virtualenv==20.21.1
"$target/tool/bin/python" -m virtualenv --quiet --python "$python27" --no-periodic-update \
    "$target/python"
rm -rf "$target/tool"
# Without dependencies: the list has them all, each in the version the suite was made for.
"$target/python/bin/python" -W ignore -m pip install --quiet --no-deps \
    --requirement "$here/requirements.txt"
