# The Debian packages that vbdkit needs, found by what they provide so that other distributions and hand-made
# installations count too. Sourced by setup.sh.

# package, what it is for, and a test that is true when it is there
START_PACKAGES=(
  'g++|compiles the addon|command -v g++'
  'make|builds the addon|command -v make'
  'python3|node-gyp runs on it|command -v python3'
  'liburing-dev|io_uring|has_header liburing.h'
  'e2fsprogs|makes and checks the demo image|command -v mke2fs && command -v e2fsck'
)
TEST_PACKAGES=(
  'cmake|builds the native tests|command -v cmake'
  'ninja-build|builds the native tests|command -v ninja'
  'doctest-dev|the native tests are written in it|has_header doctest/doctest.h'
  'qemu-utils|qemu-io drives a guest disk|command -v qemu-io'
  'libnbd-bin|nbdcopy and nbdinfo drive a guest disk|command -v nbdcopy && command -v nbdinfo'
  'systemd|judges the printed service|command -v systemd-analyze'
  'fdisk|sfdisk writes partition tables|command -v sfdisk'
  'fio|drives and verifies a guest disk|command -v fio'
  'chromium|opens the page of the benchmark|command -v chromium || command -v google-chrome'
)
BENCH_PACKAGES=(
  'cmake|builds vbdkit-bench|command -v cmake'
  'ninja-build|builds vbdkit-bench|command -v ninja'
  'fio|a limit to compare with|command -v fio'
  'qemu-system-common|a peer to compare with|command -v qemu-storage-daemon'
  'nbdkit|a peer to compare with|command -v nbdkit'
)
# for test/xen, which boots a real Xen
XEN_PACKAGES=(
  'qemu-system-x86|emulates a machine for Xen|command -v qemu-system-x86_64'
  'cpio|packs ramdisks|command -v cpio'
  'xz-utils|unpacks the kernel|command -v xz'
  'e2fsprogs|makes file systems|command -v mke2fs'
  'make|builds fio|command -v make'
  'g++|builds fio|command -v gcc'
)

has_header() {
  local directory
  for directory in /usr/include /usr/local/include ${CPATH:+${CPATH//:/ }}; do
    [ -e "$directory/$1" ] && return 0
  done
  return 1
}

# ensure_packages ENTRY...: installs what is missing, aloud; where it cannot, says what to install and exits 2.
ensure_packages() {
  local entry name purpose probe missing=()
  for entry in "$@"; do
    IFS='|' read -r name purpose probe <<<"$entry"
    if ! eval "$probe" >/dev/null 2>&1; then
      say "missing: $name ($purpose)"
      missing+=("$name")
    fi
  done
  ((${#missing[@]})) || return 0

  local install="apt-get install ${missing[*]}" as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "cannot install ${missing[*]}: not root, and no sudo here" "as root: $install"
    as_root=(sudo)
    # Without a terminal nobody could type a password: fail at once instead of waiting for one.
    [ -t 0 ] || as_root=(sudo -n)
  fi
  command -v apt-get >/dev/null || die "this is no Debian: install the counterparts of ${missing[*]}" \
    'then run the same command again'
  say "installing with apt: ${missing[*]}"
  apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"; }
  quietly apt-update apt update
  quietly apt-install apt install --no-install-recommends "${missing[@]}"
  for entry in "$@"; do
    IFS='|' read -r name purpose probe <<<"$entry"
    eval "$probe" >/dev/null 2>&1 || die "$name is installed, but does not provide what is needed: $probe" \
      "as root: apt-get install --reinstall $name"
  done
}
