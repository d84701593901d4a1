#!/bin/bash
# differential.sh [--seed N] [--seeds N] [--requests N]: asks both engines the same, stream by stream, until so many seeds
# and so many requests agree: 1,000,000 requests over at least 500 seeds when nothing is said. A disagreement is told
# with its seed, shrunk; `--seed N --seeds 1` replays it.
source "$(dirname "$0")/common.sh"

export VBDKIT_SEED=1 VBDKIT_SEEDS='' VBDKIT_REQUESTS=0 VBDKIT_PROGRESS=1
while (($#)); do
  [[ ${2:-} =~ ^[0-9]+$ ]] || die "$1 needs a number" 'for example --seed 4711 --seeds 1'
  case $1 in
    --seed) VBDKIT_SEED=$2 ;;
    --seeds) VBDKIT_SEEDS=$2 ;;
    --requests) VBDKIT_REQUESTS=$2 ;;
    *) die "no such option: $1" 'the options are --seed, --seeds and --requests' ;;
  esac
  shift 2
done
if [ -z "$VBDKIT_SEEDS" ]; then
  VBDKIT_SEEDS=500
  [ "$VBDKIT_REQUESTS" != 0 ] || VBDKIT_REQUESTS=1000000
fi
[ -n "${SKIP_SETUP:-}" ] || bash scripts/setup.sh test || exit
exec vitest run test/differential --disable-console-intercept=true
