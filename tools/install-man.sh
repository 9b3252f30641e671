#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install-man.sh DIRECTORY: build the manual pages with scdoc, where it is installed, and put them below DIRECTORY.
set -eu
cd "$(dirname "$0")/../man"
command -v scdoc >/dev/null || {
  echo "scdoc is not installed: no manual pages" >&2
  exit 0
}
for page in *.scd; do
  name=${page%.scd}
  mkdir -p "$1/man${name##*.}"
  scdoc <"$page" >"$1/man${name##*.}/$name"
done
