#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Boots the host until it is powered off, one `unshare` a boot: a PID namespace whose init called reboot(RESTART) ends
# with SIGHUP, (POWER_OFF or HALT) with SIGINT.  Environment: BED_DIR (the host's own directory), BED_ROOT, BED_VENV (where
# it is empty the host has no /opt/nvidiad), BED_PACKAGES (where it is not, /usr is writable), BED_CGROUP (its cgroup),
# BED_CGROUP_TOP (the cgroup2 mount).  Dies with its parent, and the host with it.
set -u
here=$(dirname "$0")
while :; do
  mkdir -p "$BED_CGROUP"
  read -r boots <"$BED_DIR/boots"
  echo $((boots + 1)) >"$BED_DIR/boots"
  (
    # Never boot in this machine's own root cgroup: systemd would take it over.
    echo $BASHPID >"$BED_CGROUP/cgroup.procs" || exit 1
    exec setpriv --pdeathsig KILL unshare --cgroup --mount --pid --uts --ipc --net --fork --kill-child --propagation private "$here/init.sh"
  ) &
  child=$!
  wait $child 2>/dev/null
  rc=$?
  : >"$BED_DIR/pid"
  echo "supervise: boot $((boots + 1)) ended with $rc"
  # A test that cuts the power wants the host back, as if somebody had pressed the button.
  [ $rc -eq 129 ] || rm "$BED_DIR/again" 2>/dev/null || break
done
echo "$rc" >"$BED_DIR/ended"
