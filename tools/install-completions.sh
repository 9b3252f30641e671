#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install-completions.sh DIRECTORY: put the completions below DIRECTORY (such as /usr/share), where shells look for them.
set -eu
cd "$(dirname "$0")/../completions"
for file in *; do
  case $file in
  *.bash) target=bash-completion/completions/${file%.bash} ;;
  *.fish) target=fish/vendor_completions.d/$file ;;
  _*) target=zsh/site-functions/$file ;;
  *) continue ;;
  esac
  mkdir -p "$1/$(dirname "$target")"
  cp "$file" "$1/$target"
  chmod 0644 "$1/$target"
done
