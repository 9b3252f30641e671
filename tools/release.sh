#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# release.sh [--dry-run] VERSION: refuse what is not ready, then build, sum, sign and tag; docs/releasing.md has the list.
# Nothing is pushed or uploaded. Everything is made in a clone of HEAD, so no file of this checkout gets into it.
#   RELEASE_KEY      the SSH key that signs (not needed for a dry run)
#   RELEASE_CI       the command that says by its exit status that HEAD is green, run in the clone; .ci/run by itself
#   RELEASE_TARGETS  what make builds
set -eu
cd "$(dirname "$0")/.."
fail() {
  echo "release: $*" >&2
  exit 1
}
dry=
[ "${1-}" != --dry-run ] || { dry=yes; shift; }
[ $# = 1 ] || { echo "usage: tools/release.sh [--dry-run] VERSION" >&2; exit 2; }
version=$1
ci=${RELEASE_CI-bash .ci/run}
targets=${RELEASE_TARGETS-bundle deb site sbom}
out=$PWD/build/release/$version

# -- whether it may be ------------------------------------------------------------------------------------
echo "$version" | grep -Eqx '[0-9]+\.[0-9]+\.[0-9]+' || fail "'$version' is not a version such as 1.2.3"
[ -z "$(git status --porcelain)" ] || fail "the tree is not clean: commit or remove what 'git status' shows"
said=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' nvidiad/__init__.py)
[ "$said" = "$version" ] || fail "nvidiad/__init__.py says '$said', not '$version'"
heading=$(grep -m 1 '^## ' NEWS.md || true)
echo "$heading" | grep -Eqx "## $version \([0-9]{4}-[0-9]{2}-[0-9]{2}\)" ||
  fail "the first heading of NEWS.md is '$heading', not '## $version (YYYY-MM-DD)'"
git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null && fail "the tag 'v$version' is there already"
for target in $targets; do
  grep -Eq "^$target:" Makefile || fail "the Makefile has no target '$target'"
done
[ -n "$dry" ] || [ -f "${RELEASE_KEY-}" ] || fail "RELEASE_KEY names no key to sign with"

# Times in what is built are those of the commit.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
run() {
  echo "+ $*"
  [ -n "$dry" ] || "$@"
}
pack() {
  tar --create --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --directory="$1" --transform="s,^\.,$2," . | gzip --no-name --best >"$3"
}

# -- CI, and what is shipped ------------------------------------------------------------------------------
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone --quiet --no-hardlinks . "$work/nvidiad"
echo "+ $ci"
[ -n "$dry" ] || (cd "$work/nvidiad" && sh -c "$ci") || fail "CI is red"
# shellcheck disable=SC2086 # a list of words
run make --directory="$work/nvidiad" $targets
run rm -rf "$out"
run mkdir -p "$out"
echo "+ gather dist/, the site, the bill of materials and the source in '$out'"
if [ -z "$dry" ]; then
  [ ! -d "$work/nvidiad/dist" ] || find "$work/nvidiad/dist" -type f ! -name SHA256SUMS -exec cp {} "$out" \;
  [ ! -f "$work/nvidiad/nvidiad.cdx.json" ] || cp "$work/nvidiad/nvidiad.cdx.json" "$out/nvidiad-$version.cdx.json"
  [ ! -d "$work/nvidiad/build/site/html" ] ||
    pack "$work/nvidiad/build/site/html" "nvidiad-$version-docs" "$out/nvidiad-$version-docs.tar.gz"
  git archive --prefix="nvidiad-$version/" HEAD | gzip --no-name --best >"$out/nvidiad-$version.tar.gz"
  (cd "$out" && LC_ALL=C sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
fi

# -- by whom ----------------------------------------------------------------------------------------------
key=${RELEASE_KEY-KEY}
run ssh-keygen -q -Y sign -n nvidiad-release -f "$key" "$out/SHA256SUMS"
run git -c gpg.format=ssh -c "user.signingkey=$key" tag --sign --message="nvidiad $version" "v$version"
[ -z "$dry" ] || { echo "release: '$version' may be made; nothing was done"; exit 0; }
echo "release: '$out' is signed and 'v$version' is tagged; docs/releasing.md says what comes next"
