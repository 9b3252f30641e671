#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install-man.sh DIRECTORY: build the manual pages with scdoc, where it is installed, and put them below DIRECTORY.
set -eu
mkdir -p "$1"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")/../man"
command -v scdoc >/dev/null || {
  echo "scdoc is not installed: no manual pages" >&2
  exit 0
}
for page in *.scd; do
  name=${page%.scd}
  mkdir -p "$target/man${name##*.}"
  scdoc <"$page" >"$target/man${name##*.}/$name"
done
# One page for the daemon and the units around it; files that nvidiad writes name it by the daemon.
for name in nvidiad.8 nvidiad.socket.8 nvidia.service.8; do
  echo ".so man8/nvidiad.service.8" >"$target/man8/$name"
done
