#!/bin/bash
# boot.sh TAR RESULTS [LINUX-ARGUMENT...]: boots Xen with a Linux dom0 under QEMU's emulation, TAR (of pack.sh) unpacked over
# dom0's root, and runs /opt/rig/job there. Leaves in the folder RESULTS the console's log and what the job wrote to
# $OUT; prints the job's lines as they come. Exits with the job's status; 124 when its time ran out, 125 when there is
# none: no boot, or a crash. A NAME=VALUE among the arguments is in the job's environment.
#   TIMEOUT=1800         seconds for the job; a minute more for the whole boot
#   XENSTORED=xenstored  or oxenstored
#   GUESTS=pv            or pvh: PVH guests can be run as well
#   CLOCK=wall           or icount: time is instructions, 8 ns each; what is measured then does not depend on this
#                        machine's load
source "$(dirname "$0")/../../scripts/common.sh"
tar=$1 results=$2
shift 2
machine=.cache/xen/machine
timeout=${TIMEOUT:-1800}

# No model with SMAP: with it QEMU 7.2 faults on an IRET of a PV kernel. None with XSAVE: with it two domains on one
# processor spoil each other's registers.
case ${GUESTS:-pv} in
  pv) model=Nehalem ;;
  pvh) model=max,-smap,-xsave,-rdtscp ;; # with SVM; QEMU tells Xen too little to emulate RDTSCP
  *) die "GUESTS=$GUESTS is neither pv nor pvh" ;;
esac
# One processor: a second one is no faster, and a crawl where this machine is busy.
processor=(-smp 1 -cpu "$model")
case ${CLOCK:-wall} in
  wall) processor+=(-accel 'tcg,thread=multi,tb-size=512') ;;
  icount) processor+=(-accel 'tcg,thread=single,tb-size=512' -icount 'shift=3,sleep=off') ;;
  *) die "CLOCK=$CLOCK is neither wall nor icount" ;;
esac
xen="console=com1 com1=115200,8n1 dom0_mem=1536M,max:1536M dom0_max_vcpus=1 bootscrub=off conring_size=1m xpti=off spec-ctrl=off"
# The emulated clock jumps when this machine is busy: its watchdog would give it up.
linux="console=hvc0 quiet panic=1 mitigations=off tsc=nowatchdog rig.timeout=$timeout rig.xenstored=${XENSTORED:-xenstored} $*"

rm -rf "$results"
mkdir -p "$results"
disks=$(mktemp -d)
trap 'rm -rf "$disks"' EXIT
truncate -s 1G "$disks/results"
# What the disks hold is lost in the end: no write need reach this machine's disk before its answer.
disk() { echo "if=virtio,format=raw,cache=unsafe,discard=unmap,$1"; }

status=0
timeout --foreground -k 5 $((timeout + 60)) qemu-system-x86_64 \
  -nodefaults -display none -no-reboot -serial stdio -machine q35 "${processor[@]}" -m 3G \
  -kernel "$machine/xen" -append "$xen" -initrd "$machine/vmlinux $linux,$machine/dom0-ramdisk" \
  -drive "$(disk "file=$machine/dom0.ext4,snapshot=on")" \
  -drive "$(disk "file=$tar,readonly=on")" \
  -drive "$(disk "file=$disks/results")" \
  </dev/null 2>&1 | tee "$results/console.log" | sed -un 's/\r$//; s/^rig: //p' || status=${PIPESTATUS[0]}
tar -x -C "$results" -f "$disks/results" 2>/dev/null || true
if [ ! -s "$results/status" ]; then
  say "the job left no status; QEMU ended with $status; the console: $results/console.log"
  tail -n 30 "$results/console.log" >&2
  exit 125
fi
exit "$(cat "$results/status")"
