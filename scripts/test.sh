#!/bin/bash
# test.sh [PHASE...]: what `npm test` runs: sets up what is missing, then every phase, or the phases named. Phases that
# only compile or compute share the two lanes below; integration, which minds the clock, runs alone at the end.
#   lint          biome, on everything it knows
#   types         tsc, on lib, test and examples; typedoc, on the docstrings
#   tidy          the rules of the house: imports, headers, docstrings
#   native        the C++ unit tests
#   asan          the same under AddressSanitizer and UndefinedBehaviorSanitizer
#   tsan          the threaded ones under ThreadSanitizer
#   unit          TypeScript, one module at a time
#   conformance   every driver and every filter: the same random requests through rings, against a shadow of the disk
#   xen           a real Xen in an emulated machine: dom0 and one guest (`npm run test:xen` is the long form)
#   integration   whole ways through the addon, the mock and the command line
#   differential  the JavaScript engine: both engines on the same generated streams, and integration tests on this one;
#                 VBDKIT_FULL=1: every one of them that serves disks, conformance, and 1,000,000 requests
#   teardown      disks in TypeScript, whose threads and processes end under AddressSanitizer; builds the addon for that.
# Its last line is `N passed, N failed`; its exit code is 0 only when nothing failed.
PHASES=(lint types tidy native asan tsan unit conformance xen integration differential teardown)
CPU_LANE=(native asan tsan)
JS_LANE=(lint types tidy unit conformance xen)
ALONE=(integration differential teardown)

source "$(dirname "$0")/common.sh"

wanted=("$@")
((${#wanted[@]})) || wanted=("${PHASES[@]}")
for phase in "${wanted[@]}"; do
  [[ " ${PHASES[*]} " == *" $phase "* ]] || die "no such phase: $phase" "the phases are: ${PHASES[*]}"
done
[ -n "${SKIP_SETUP:-}" ] || bash scripts/setup.sh test || exit

RESULTS=$(mktemp -d)
trap 'rm -rf "$RESULTS"' EXIT
export FORCE_COLOR=${FORCE_COLOR:-0} NO_COLOR=1

# Each phase prints to its log and leaves `passed failed` in $RESULTS/NAME.count when it can count.
run_vitest() { # NAME FILTER...
  local name=$1 rc=0
  shift
  vitest run --reporter=default --reporter=json --outputFile.json="$RESULTS/$name.json" "$@" || rc=$?
  node -e '
    const r = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"))
    // A file that fails to load has no tests in it, yet it failed.
    const broken = r.testResults.filter((f) => f.status === "failed" && f.assertionResults.every((t) => t.status !== "failed"))
    console.log(r.numPassedTests, r.numFailedTests + broken.length)
  ' "$RESULTS/$name.json" >"$RESULTS/$name.count" || rc=1
  return "$rc"
}

run_native() { # NAME SANITIZERS DOCTEST-OPTION...
  local name=$1 sanitizers=$2 tree=build/core rc=0
  [ -z "$sanitizers" ] || tree=build/$name
  shift 2
  build_native_tests "$tree" "$sanitizers" || return
  local runner=()
  # ThreadSanitizer's fixed memory layout does not fit every kernel's address randomisation.
  [ "$sanitizers" != thread ] || ! setarch -R true 2>/dev/null || runner=(setarch -R)
  ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
    "${runner[@]}" "$tree/native_tests" "$@" 2>&1 | tee "$RESULTS/$name.doctest" || rc=$?
  sed -nE 's/^\[doctest\] test cases: *[0-9]+ \| *([0-9]+) passed \| *([0-9]+) failed.*/\1 \2/p' \
    "$RESULTS/$name.doctest" >"$RESULTS/$name.count"
  return "$rc"
}

# Integration tests that no engine of ours serves disks in: xenstore, what moves nothing, what a command loads or prints,
# and parts of the addon and of the native engine. All others run on either (test/tidy.test.ts sees to it).
WITHOUT_ENGINE=(bench cli_start demo host lifecycle lifecycle_daemons lifecycle_model native_mock nbd_tools unit watchdog
  xenstore_client xenstore_differential xenstore_exit xenstore_server)

# Without VBDKIT_FULL what is long, or the same on both engines, is left out.
run_differential() {
  local name names=(lifecycle_native hostile_ring filesystem flush_failure script script_filter overlay)
  names=("${names[@]/%/.test.ts}")
  local files=(test/differential "${names[@]/#/test/integration/}")
  [ -z "${VBDKIT_FULL:-}" ] || {
    files=(test/differential test/conformance)
    for name in $(basename -s .test.ts test/integration/*.test.ts); do
      [[ " ${WITHOUT_ENGINE[*]} " == *" $name "* ]] || files+=("test/integration/$name.test.ts")
    done
  }
  VBDKIT_TEST_ENGINE=js run_vitest differential "${files[@]}"
}

# The addon loads where VBDKIT_PREBUILD says, as node-gyp-build has it.
run_teardown() {
  local tree=$PWD/build/asan-addon
  cmake-js build --out "$tree/build" --target vbdkit --CDVBD_SANITIZE=address || return
  VBDKIT_SANITIZED=$tree VBDKIT_SANITIZER_RUNTIME=$(gcc -print-file-name=libasan.so) \
    run_vitest teardown test/integration/script_worker.test.ts -t '40 threads|process.exit'
}

# Exits with 3 where the machine cannot be had.
run_xen() {
  local rc=0
  SKIP_SETUP=1 bash test/xen/run.sh short | tee "$RESULTS/xen.lines" || rc=$?
  sed -nE '$s/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$RESULTS/xen.lines" >"$RESULTS/xen.count"
  return "$rc"
}

run_phase() {
  case $1 in
    lint) biome check --error-on-warnings . ;;
    types)
      tsc -p tsconfig.test.json --incremental --tsBuildInfoFile .cache/types.tsbuildinfo &&
        typedoc --emit none
      ;;
    tidy) run_vitest tidy test/tidy.test.ts ;;
    native) run_native native '' ;;
    asan) run_native asan address,undefined ;;
    tsan)
      # The rings of io_uring that come and go over files reuse addresses, which looks like a race.
      run_native tsan thread -tce='conformance: every stage over a file*' \
        --source-file='*reactor*,*engine*,*mock*,*load*,*mailbox*,*uring*,*sync_test*,*script*,*conformance*,*cache*,*read_ahead*,*freshness*'
      ;;
    unit) run_vitest unit test/unit ;;
    conformance) run_vitest conformance test/conformance ;;
    xen) run_xen ;;
    integration) run_vitest integration test/integration ;;
    differential) run_differential ;;
    teardown) run_teardown ;;
  esac
}

# Runs one phase into its log and says how it went. A failure that was not counted counts as one.
report_phase() {
  local phase=$1 log=".cache/test-$1.log" started=$SECONDS rc=0 passed=0 failed=0
  (set -o pipefail; run_phase "$phase") >"$log" 2>&1 </dev/null || rc=$?
  [ ! -s "$RESULTS/$phase.count" ] || read -r passed failed <"$RESULTS/$phase.count"
  if [ "$phase" = xen ] && ((rc == 3)); then
    printf '== %-12s skipped: %s\n' "$phase" "$(tail -n 1 "$log" | sed "s/^vbdkit: //")"
    echo 0 0 >"$RESULTS/$phase.total"
    return
  fi
  ((rc == 0 || failed > 0)) || failed=1
  echo "$passed $failed" >"$RESULTS/$phase.total"
  local took=$((SECONDS - started)) verdict=ok
  ((failed == 0)) || verdict=FAILED
  # One write per phase: the lanes share the terminal.
  {
    printf '== %-12s %-7s %3d s' "$phase" "$verdict" "$took"
    ((passed + failed == 0)) || printf '   %d passed, %d failed' "$passed" "$failed"
    printf '\n'
    if ((failed)); then
      tail -n 80 "$log"
      printf -- '-- %s failed; all of it: %s\n' "$phase" "$log"
    fi
  } >"$RESULTS/$phase.report"
  cat "$RESULTS/$phase.report"
}

run_lane() {
  local phase
  for phase in "$@"; do
    [[ " ${wanted[*]} " != *" $phase "* ]] || report_phase "$phase"
  done
}

run_lane "${CPU_LANE[@]}" &
lane=$!
trap 'kill "$lane" 2>/dev/null; rm -rf "$RESULTS"' EXIT
run_lane "${JS_LANE[@]}"
wait "$lane"
trap 'rm -rf "$RESULTS"' EXIT
run_lane "${ALONE[@]}"

total_passed=0 total_failed=0
for phase in "${wanted[@]}"; do
  read -r passed failed <"$RESULTS/$phase.total"
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
done
printf '%d passed, %d failed\n' "$total_passed" "$total_failed"
((total_failed == 0))
