#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install-completions.sh DIRECTORY: put the completions below DIRECTORY (such as /usr/share), where shells look for them.
set -eu
mkdir -p "$1"
share=$(cd "$1" && pwd)
cd "$(dirname "$0")/../completions"
for file in *; do
  case $file in
  *.bash) target=bash-completion/completions/${file%.bash} ;;
  *.fish) target=fish/vendor_completions.d/$file ;;
  _*) target=zsh/site-functions/$file ;;
  *) continue ;;
  esac
  mkdir -p "$share/$(dirname "$target")"
  cp "$file" "$share/$target"
  chmod 0644 "$share/$target"
done
