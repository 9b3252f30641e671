#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install-units.sh DESTDIR SYSCONFDIR PREFIX [VENDORDIR]: put units/ below SYSCONFDIR, with PREFIX in the units' commands.
# With a VENDORDIR (a package's /usr/lib) all of it goes there, but for the configuration and for the gates: nvidiad
# writes those to /etc as soon as somebody has configured it, and takes back what is no longer gated. One in /usr/lib
# would hold the kubelet of a host on which the package has only been installed.
set -eu
destdir=$1 sysconfdir=$2 prefix=$3 vendordir=${4-}
cd "$(dirname "$0")/../units"
find . -type f | while read -r file; do
  target=$destdir${vendordir:-$sysconfdir}/${file#./}
  case $file in
    ./nvidiad/*)
      target=$destdir$sysconfdir/${file#./}
      # A configuration that is there is the user's.
      [ ! -e "$target" ] || continue
      ;;
    */10-nvidia.conf) [ -z "$vendordir" ] || continue ;;
  esac
  mkdir -p "$(dirname "$target")"
  sed "s,/opt/nvidiad/,$prefix/,g" "$file" >"$target"
  chmod 0644 "$target"
done
[ -n "$destdir" ] || {
  systemd-sysusers "${vendordir:-$sysconfdir}/sysusers.d/nvidiad.conf"
  systemd-tmpfiles --create "${vendordir:-$sysconfdir}/tmpfiles.d/nvidiad.conf"
  systemctl daemon-reload
}
