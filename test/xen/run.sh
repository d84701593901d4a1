#!/bin/bash
# run.sh [short|full|BOOT...]: what `npm run test:xen` runs (full): builds what is missing, boots a real Xen for each BOOT, and
# runs its suites in dom0. Results in .cache/xen/results/BOOT: console.log, and what xl, QEMU and the guests logged.
# Its last line is `N passed, N failed`; exit code 0 only when nothing failed, 3 when the machine cannot be had here.
source "$(dirname "$0")/../../scripts/common.sh"

# boot | xenstored | suites | more of what boot.sh takes from its environment
BOOTS=(
  'short|xenstored|dom0+guest|'
  'disks|xenstored|operations+root|'
  'transfers|xenstored|transfers|'
  'life|xenstored|life|'
  'oxenstored|oxenstored|dom0+guest+life+operations|'
  'grub|xenstored|grub|GUESTS=pvh'
  'compare|xenstored|compare|CLOCK=icount TIMEOUT=7200'
)

wanted=("$@")
((${#wanted[@]})) || wanted=(full)
if [ "${wanted[*]}" = full ]; then wanted=("${BOOTS[@]%%|*}"); fi
bash test/xen/build.sh || exit
[ -n "${SKIP_SETUP:-}" ] || bash scripts/setup.sh test || exit
quietly xen-native build_native_tests build/core ''

tar=$(mktemp --suffix .tar)
trap 'rm -f "$tar"' EXIT
bash test/xen/pack.sh "$tar"

total_passed=0 total_failed=0
for boot in "${wanted[@]}"; do
  found=
  for entry in "${BOOTS[@]}"; do
    IFS='|' read -r name xenstored suites settings <<<"$entry"
    [ "$name" != "$boot" ] || { found=yes; break; }
  done
  [ -n "$found" ] || die "no such boot: $boot" "the boots are: ${BOOTS[*]%%|*}"
  results=.cache/xen/results/$boot
  say "real Xen, $boot: booting ($xenstored; $suites${settings:+; $settings})"
  passed=0 failed=0 skipped=0 rc=0
  # shellcheck disable=SC2086 # settings are words
  env XENSTORED="$xenstored" $settings bash test/xen/boot.sh "$tar" "$results" "SUITES=$suites" || rc=$?
  [ ! -s "$results/counts" ] || read -r passed failed skipped <"$results/counts"
  # A boot that did not come to its end has failed, whatever it counted.
  ((rc == 0 || failed > 0)) || failed=1
  say "real Xen, $boot: $passed passed, $failed failed, $skipped skipped"
  if ((failed == 0)) && [ -s "$results/compare.json" ]; then
    node test/xen/report.mjs "$results/compare.json"
    say 'real Xen: the table of docs/real-xen.md is written'
  fi
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
done
printf '%d passed, %d failed\n' "$total_passed" "$total_failed"
((total_failed == 0))
