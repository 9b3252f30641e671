#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# deb.sh TREE DIRECTORY: make DIRECTORY/nvidiad_VERSION_ARCH.deb of a bundle's TREE (bin/nvidiad and what it needs).
# From the environment: DEB_VERSION (nvidiad's own), DEB_ARCH (this machine's), DEB_MAINTAINER, DEB_COMPRESS (xz),
# SOURCE_DATE_EPOCH (the last commit's time): equal inputs make equal packages.
set -eu
mkdir -p "$2"
tree=$(cd "$1" && pwd) directory=$(cd "$2" && pwd)
top=$(cd "$(dirname "$0")/.." && pwd)
own=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$top/nvidiad/__init__.py")
# What comes before a release sorts before it.
version=${DEB_VERSION:-$(echo "$own" | sed 's/\.\{0,1\}\(dev\|a\|b\|rc\)/~\1/')}
arch=${DEB_ARCH:-$(dpkg --print-architecture)}
maintainer=${DEB_MAINTAINER:-nvidiad maintainers <nvidiad@example.invalid>}
: "${SOURCE_DATE_EPOCH:=$(git -C "$top" log -1 --format=%ct 2>/dev/null || echo 0)}"
export SOURCE_DATE_EPOCH
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
umask 022

# The private tree, without what only a bundle needs: its own installer, and what has a place of its own here.
mkdir -p "$root/usr/lib" "$root/usr/bin" "$root/usr/share/doc/nvidiad" "$root/usr/share/lintian/overrides" "$root/DEBIAN"
cp -a "$tree" "$root/usr/lib/nvidiad"
private=$root/usr/lib/nvidiad
rm -rf "$private/install" "$private/uninstall" "$private/share/nvidiad/units" "$private/share/man" \
  "$private/share/nvidiad/SHA256SUMS"
for shell in bash-completion zsh fish; do
  [ ! -d "$private/share/$shell" ] || mv "$private/share/$shell" "$root/usr/share/"
done
for program in "$private"/bin/nvidiad*; do
  [ ! -f "$program" ] || ln -s "../lib/nvidiad/bin/${program##*/}" "$root/usr/bin/"
done

"$top/tools/install-units.sh" "$root" /etc /usr/lib/nvidiad /usr/lib
"$top/tools/install-man.sh" "$root/usr/share/man"
[ ! -d "$root/usr/share/man" ] || find "$root/usr/share/man" -type f -exec gzip -9n {} +

cd "$top/packaging/debian"
cp copyright "$root/usr/share/doc/nvidiad/copyright"
cp lintian-overrides "$root/usr/share/lintian/overrides/nvidiad"
cat >"$root/usr/share/doc/nvidiad/changelog" <<C
nvidiad ($version) unstable; urgency=medium

  * This release's news are in NEWS.md of the sources.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
C
gzip -9n "$root/usr/share/doc/nvidiad/changelog"

# Whatever units/ has with an [Install] is enabled; no list of them is kept here.
units=$(cd "$root/usr/lib/systemd/system" && grep -l '^\[Install\]' ./*.* | sed 's,^\./,,' | sort | paste -sd ' ')
(cd "$root" && find etc -type f | sort | sed 's,^,/,') >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
size=$(du -k -s --apparent-size "$root/usr" "$root/etc" | awk '{ n += $1 } END { print n }')
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@MAINTAINER@/$maintainer/" -e "s/@SIZE@/$size/" \
  control.in >"$root/DEBIAN/control"
for script in preinst prerm; do cp "$script" "$root/DEBIAN/$script"; done
for script in postinst postrm; do sed "s/@UNITS@/$units/g" "$script.in" >"$root/DEBIAN/$script"; done
chmod 0755 "$root"/DEBIAN/p*
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group "-Z${DEB_COMPRESS:-xz}" --build "$root" "$directory/nvidiad_${version}_$arch.deb" >/dev/null
echo "$directory/nvidiad_${version}_$arch.deb"
