#!/bin/bash
# fetch.sh: unpacks Debian 12's real xenstored, oxenstored and xenstore tools into .cache/xenstored/root (nothing is installed
# on the machine) and builds shim.so there, with which the daemons run where there is no Xen. Quick when all is there.
# Fails with the reason on its last line of stderr.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=$here/../../.cache/xenstored
packages=(xen-utils-4.17 xenstore-utils libxenmisc4.17 libxencall1 libxendevicemodel1 libxenevtchn1
  libxenforeignmemory1 libxengnttab1 libxentoolcore1 libxentoollog1 libxenhypfs1 libxenstore4 libxen-dev)

mkdir -p "$cache"
# Several test files may want it at once.
exec 9>"$cache/lock"
flock 9

if [ ! -d "$cache/root" ]; then
  debs=$(mktemp -d)
  trap 'rm -rf "$debs"' EXIT
  chmod 755 "$debs"
  (cd "$debs" && apt-get download -q -o APT::Sandbox::User=root "${packages[@]}") >"$cache/download.log" 2>&1 || {
    echo "the Debian 12 packages of Xen 4.17 cannot be had: $(tail -n 1 "$cache/download.log")" >&2
    exit 1
  }
  rm -rf "$cache/root.new"
  mkdir "$cache/root.new"
  for deb in "$debs"/*.deb; do dpkg -x "$deb" "$cache/root.new"; done
  mv "$cache/root.new" "$cache/root"
fi
if [ ! "$cache/shim.so" -nt "$here/shim.c" ]; then
  gcc -shared -fPIC -O1 -Wall -Wextra -Wno-unused-parameter -I"$cache/root/usr/include" \
    -o "$cache/shim.so.new" "$here/shim.c" -ldl
  mv "$cache/shim.so.new" "$cache/shim.so"
fi
