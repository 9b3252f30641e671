#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# lock.sh UV [OPTION...]: write requirements/*.txt anew, with the newest versions that setup.cfg and the *.in allow.
# Options are uv's: --upgrade-package=NAME, say. No index is named in what is written: pip has its own settings.
set -eu
cd "$(dirname "$0")/.."
uv=$1
shift
[ "$#" -gt 0 ] || set -- --upgrade
lock() {
  target=$1
  shift
  "$uv" pip compile --quiet --universal --python-version=3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-package=pywin32 --output-file="requirements/$target.txt" "$@" >/dev/null
  { echo "# SPDX-License-Identifier: Apache-2.0"; echo "# make lock"; cat "requirements/$target.txt"; } \
    >"requirements/$target.tmp"
  mv "requirements/$target.tmp" "requirements/$target.txt"
}
lock runtime "$@" setup.cfg
lock build "$@" --no-emit-package=colorama requirements/build.in
lock tools "$@" requirements/tools.in
lock site "$@" requirements/site.in
