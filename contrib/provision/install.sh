#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install.sh URL SHA256 [--enable]: fetch a bundle of nvidiad (.tar.gz, or .tar.zst where there is zstd), see that it is
# the one with this hash, and let it install itself. Before that nothing of it is run and nothing on the host is changed.
# --enable starts nvidiad, now and at each boot. Run again it changes nothing; with the URL of another version it changes
# to that. Exit status: 0, or not, and why.
set -eu
fail() {
  echo "install.sh: $*" >&2
  exit 1
}
[ "$#" -ge 2 ] || fail "usage: install.sh URL SHA256 [--enable]"
url=$1 sum=$2
shift 2
[ "$(id -u)" = 0 ] || fail "only root can install nvidiad"
expr "$sum" : '[0-9a-f]\{64\}$' >/dev/null || fail "'$sum' is not the SHA-256 of a file, in 64 digits of lower case"
name=${url##*/}
case $name in
  *.tar.gz) unpack=gzip ;;
  *.tar.zst) unpack=zstd ;;
  *) fail "'$name' is not the name of a bundle (.tar.gz, .tar.zst)" ;;
esac
for program in tar sha256sum "$unpack"; do
  command -v "$program" >/dev/null || fail "'$program' is not installed"
done

# Not in /tmp: it may be small.
work=$(mktemp -d /var/tmp/nvidiad-install.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
if command -v curl >/dev/null; then
  curl --fail --location --silent --show-error --retry 5 --connect-timeout 20 --output "$work/$name" "$url" ||
    fail "cannot fetch '$url'"
elif command -v wget >/dev/null && ! wget --help 2>&1 | grep -q -e --tries; then
  # A busybox's, which has none of these options.
  wget -q -O "$work/$name" "$url" || fail "cannot fetch '$url'"
elif command -v wget >/dev/null; then
  wget --quiet --tries=5 --timeout=20 --output-document="$work/$name" "$url" || fail "cannot fetch '$url'"
else
  fail "neither 'curl' nor 'wget' is installed"
fi
found=$(sha256sum "$work/$name")
[ "${found%% *}" = "$sum" ] || fail "'$url' has the SHA-256 ${found%% *}, not $sum: nothing was installed"

mkdir "$work/bundle"
"$unpack" -dc <"$work/$name" | tar -x -f - -C "$work/bundle" --no-same-owner
[ -f "$work/bundle/${name%.tar.*}/install" ] || fail "'$url' is not a bundle: there is no '${name%.tar.*}/install' in it"
# By its shell: there may be nothing to be run from /var/tmp (noexec).
sh "$work/bundle/${name%.tar.*}/install" "$@"
