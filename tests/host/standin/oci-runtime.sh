#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# An OCI runtime for machines whose capability bounding set lacks CAP_SYS_RESOURCE, where runc 1.1.5 and older refuse
# --privileged ("unable to apply caps: operation not permitted").  It drops that one capability and is runc otherwise.
previous=
for argument in "$@"; do
  case $previous in
    --bundle | -b) file=$argument/config.json ;;
    --process | -p) file=$argument ;;
    *) file= ;;
  esac
  [ -n "$file" ] && [ -f "$file" ] && sed -i 's/,"CAP_SYS_RESOURCE"//g;s/"CAP_SYS_RESOURCE",//g' "$file"
  previous=$argument
done
exec /usr/sbin/runc "$@"
