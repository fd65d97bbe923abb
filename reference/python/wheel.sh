#!/bin/sh
# How does the Python package become a wheel?  From the libraries and the
# program that a build folder holds; the wheel lands in that folder.
#   wheel.sh BUILD
# Tools come from PyPI into an environment of their own, BUILD/python.  Exit
# code 77: they cannot be had, as without a network.
set -eu
build=$(cd "$1" && pwd)
top=$(cd "$(dirname "$0")/../.." && pwd)
env=$build/python
log=$build/python.log

skip() {
  cat "$log" >&2
  echo "wheel: $*; see above" >&2
  exit 77
}

if ! [ -x "$env/bin/pip" ]; then
  python3 -m venv "$env" >"$log" 2>&1 || skip "no environment for Python"
fi
if ! "$env/bin/python" -c 'import scikit_build_core, nanobind' 2>/dev/null; then
  "$env/bin/pip" install --quiet --disable-pip-version-check \
    'scikit-build-core>=0.10' 'nanobind>=2.4' >"$log" 2>&1 ||
    skip "PyPI does not give scikit-build-core and nanobind"
fi
rm -f "$build"/carve-*.whl
"$env/bin/pip" wheel --quiet --disable-pip-version-check --no-deps \
  --no-build-isolation --wheel-dir "$build" \
  --config-settings=build-dir="$build/wheel" \
  --config-settings=cmake.define.CARVE_PREBUILT="$build" \
  --config-settings=build.targets=carve_python "$top"
ls "$build"/carve-*.whl
