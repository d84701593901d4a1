#!/bin/bash
# bench.sh [OPTION...]: what `npm run bench` runs: sets up what is missing, builds the program that measures limits, then
# `vbdkit bench`. Options are those of `vbdkit bench`.
scripts=$(cd "$(dirname "$0")" && pwd)
bash "$scripts/setup.sh" bench || exit
(
  source "$scripts/common.sh"
  need_node
  bench_from=$(fingerprint native CMakeLists.txt)
  if [ ! -x build/bench/vbdkit-bench ] || ! fresh bench "$bench_from"; then
    say 'building vbdkit-bench'
    quietly bench-cmake cmake -S . -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release
    quietly bench-ninja ninja -C build/bench vbdkit-bench
    stamp bench "$bench_from"
  fi
) || exit
# npm runs us in the package's folder; relative paths are meant from where the operator stands.
cd "${INIT_CWD:-$PWD}" || exit
exec node "$scripts/../bin/vbdkit.js" bench "$@"
