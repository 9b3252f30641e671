#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install what building nvidiad's own dependencies needs, and the packages named, where they are missing (the beds
# install their own).
set -eu
missing=
for package in make gcc libc6-dev python3-dev python3-venv libsystemd-dev pkg-config "$@"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] || { echo "these Debian packages are missing, and only root can install them:$missing" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing
