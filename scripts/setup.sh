#!/bin/bash
# setup.sh [start|test|bench]: brings whatever is missing to run vbdkit (start, the default), to test or to measure it,
# and is quick when nothing is. Network: only apt and npm. Two may run at once: the second waits for the first and finds nothing left to do.
source "$(dirname "$0")/common.sh"
source scripts/packages.sh

purpose=${1:-start}
case $purpose in
  start) packages=("${START_PACKAGES[@]}") ;;
  test) packages=("${START_PACKAGES[@]}" "${TEST_PACKAGES[@]}") ;;
  bench) packages=("${START_PACKAGES[@]}" "${BENCH_PACKAGES[@]}") ;;
  *) die "setup: what for? '$purpose' is none of start, test, bench" 'npm run setup -- test' ;;
esac
[ "$(uname -s)" = Linux ] || die "vbdkit runs on Linux, this is $(uname -s)"

need_node
exec 9>"$STAMPS/lock"
flock 9

ensure_packages "${packages[@]}"

npm_from=$(fingerprint package-lock.json)
if [ ! -d node_modules ] || ! fresh npm "$npm_from"; then
  say 'installing npm packages'
  # The addon is built below, from the right headers: npm need not try on its own.
  quietly npm-ci npm ci --ignore-scripts --no-audit --no-fund --include=dev
  stamp npm "$npm_from"
fi

source scripts/build.sh
