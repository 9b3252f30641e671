#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install-units.sh DESTDIR SYSCONFDIR PREFIX: put units/ below SYSCONFDIR, with PREFIX in the units' commands.
set -eu
destdir=$1 sysconfdir=$2 prefix=$3
cd "$(dirname "$0")/../units"
find . -type f | while read -r file; do
  target=$destdir$sysconfdir/${file#./}
  # A configuration that is there is the user's.
  case $file in ./nvidiad/*) [ ! -e "$target" ] || continue ;; esac
  mkdir -p "$(dirname "$target")"
  sed "s,/opt/nvidiad/,$prefix/,g" "$file" >"$target"
  chmod 0644 "$target"
done
[ -n "$destdir" ] || {
  systemd-sysusers "$sysconfdir/sysusers.d/nvidiad.conf"
  systemd-tmpfiles --create "$sysconfdir/tmpfiles.d/nvidiad.conf"
  systemctl daemon-reload
}
