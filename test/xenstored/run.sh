#!/bin/bash
# run.sh xenstored|oxenstored DIR: runs the real daemon in the foreground, without Xen, as this very process; it listens on
# DIR/run/socket. DIR/dom/N is there: domain N lives; see shim.c. What fetch.sh brings must be there.
# oxenstored needs root: its socket's path is compiled in, so it gets a mount namespace of its own.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=$(readlink -f "$here/../../.cache/xenstored")
bin=$cache/root/usr/lib/xen-4.17/bin
mkdir -p "$2"/{run,lib,dom,log}
dir=$(readlink -f "$2")
export LD_LIBRARY_PATH
LD_LIBRARY_PATH=$cache/root/usr/lib/$(gcc -print-multiarch)
export XSHIM_DIR=$dir shim=$cache/shim.so dir bin
case $1 in
  xenstored)
    export XENSTORED_RUNDIR=$dir/run XENSTORED_ROOTDIR=$dir/lib LD_PRELOAD=$shim
    exec "$bin/xenstored" -N -F "$dir/run/pid" -T "$dir/trace.log"
    ;;
  oxenstored)
    printf '%s\n' "xenstored-log-file = $dir/log/xenstored.log" "access-log-file = $dir/log/access.log" \
      'xenstored-kva = /proc/xen/xsd_kva' 'xenstored-port = /proc/xen/xsd_port' >"$dir/ox.conf"
    exec unshare -m bash -c 'mount -t tmpfs none /run && mkdir -p /run/xenstored /run/xen &&
      mount --bind "$dir/run" /run/xenstored &&
      exec env LD_PRELOAD="$shim" "$bin/oxenstored" --no-fork --config-file "$dir/ox.conf"'
    ;;
  *)
    echo "no such daemon: $1" >&2
    exit 2
    ;;
esac
