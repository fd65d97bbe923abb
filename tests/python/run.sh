#!/bin/sh
# Does the wheel work where nothing but Python is?  Makes it, installs it in
# BUILD/python and runs the tests of this folder there.
#   run.sh BUILD
# CARVE_PYTHON_PACKAGES names further packages to test with, e.g. torch.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
env=$build/python

sh "$here/../../reference/python/wheel.sh" "$build"
# shellcheck disable=SC2086
"$env/bin/pip" install --quiet --disable-pip-version-check \
  numpy ml_dtypes pytest jsonschema ${CARVE_PYTHON_PACKAGES-} || {
  echo "PyPI does not give the packages of the tests" >&2
  exit 77
}
# What has wheels for a CPU.  torch's on PyPI bring CUDA with them, so torch,
# transformers and FLA are for CARVE_PYTHON_PACKAGES.
for package in onnx onnxruntime jax "mlx[cpu] mlx-lm"; do
  # shellcheck disable=SC2086
  "$env/bin/pip" install --quiet --disable-pip-version-check $package ||
    echo "no $package: the tests with it are skipped" >&2
done
"$env/bin/pip" install --quiet --disable-pip-version-check --force-reinstall \
  --no-deps "$build"/carve-*.whl
# Away from the sources, which hold no extension.
cd "$build"
PATH=$env/bin:$PATH exec "$env/bin/python" -m pytest -q -rs \
  -p no:cacheprovider "$here"
