#!/bin/bash
# build.sh: builds from Debian 12 packages, into .cache/xen/machine, what boot.sh boots:
#   xen               the hypervisor, unpacked
#   vmlinux           Debian's kernel, unpacked, of dom0 and of the guests
#   dom0-ramdisk      finds dom0's root file system
#   dom0.ext4         that file system: Xen's tools, QEMU (qdisk), node; nothing of this project
#   guest-ramdisk     busybox, e2fsprogs, fio and the disk drivers of a guest; its /init comes from pack.sh
# Installs on this machine only what scripts/packages.sh lists. Quick when all is there: it is built from this file and
# the running node alone; remove .cache/xen for newer Debian packages. Exit code 3: cannot be had here, and why.
source "$(dirname "$0")/../../scripts/common.sh"
source scripts/packages.sh
cache=$PWD/.cache/xen
machine=$cache/machine
mkdir -p "$cache"

unavailable() {
  say "real Xen cannot be had here: $*"
  exit 3
}

[ "$(uname -sm)" = 'Linux x86_64' ] || unavailable "the machine is built from amd64 packages, this is $(uname -sm)"
command -v apt-get >/dev/null || unavailable 'it is built from Debian packages, and there is no apt-get'
((EUID == 0)) || unavailable 'its file systems are made by root'
need_node
exec 9>"$cache/lock"
flock 9
from=$(fingerprint test/xen/build.sh test/xen/dom0/meter.c)
if [ -e "$machine/dom0.ext4" ] && fresh xen "$from"; then exit 0; fi
(ensure_packages "${XEN_PACKAGES[@]}") || unavailable 'QEMU or the tools that build the machine are not installed'

PACKAGES=(xen-hypervisor-4.17-amd64 xen-utils-4.17 xenstore-utils libxen-dev qemu-system-xen linux-image-amd64
  grub-xen-host liburing2
  libstdc++6 bash coreutils busybox-static kmod libc-bin dash sed grep tar findutils gawk hostname util-linux mount
  e2fsprogs fdisk iproute2 procps cpio strace)
DOM0_MODULES=(virtio_pci virtio_blk ext4 loop brd null_blk dm-mod xenfs xen-gntdev xen-gntalloc xen-evtchn xen-privcmd
  xen-blkback xen-blkfront)
RAMDISK_MODULES=(virtio_pci virtio_blk ext4)
GUEST_MODULES=(xen-blkfront ext4)
# Beside busybox, whose own shell would run its own mke2fs in place of these.
GUEST_PROGRAMS=(/bin/dash /sbin/blkdiscard /sbin/blockdev /sbin/e2fsck /sbin/fstrim /sbin/mke2fs /sbin/resize2fs /sbin/sfdisk
  /bin/xenstore-read /bin/xenstore-write)

work=$(mktemp -d "$cache/build.XXXXXX")
stage=$work/stage
trap 'rm -rf "$work"' EXIT

# ---------------------------------------------------------------------------------------------------------------------
# Packages

# An empty dpkg status makes apt resolve the packages as for a bare machine, so that their tree is a complete root.
bare_apt() {
  apt-get -y -q --no-install-recommends -o APT::Sandbox::User=root -o Dir::State::status="$work/status" \
    -o Dir::Cache::archives="$cache/debs" "$@" install "${PACKAGES[@]}"
}

fetch_packages() {
  mkdir -p "$cache/debs/partial"
  : >"$work/status"
  bare_apt --simulate >/dev/null 2>&1 || apt-get -q update >"$work/update.log" 2>&1 || true
  bare_apt --download-only >"$work/fetch.log" 2>&1 || unavailable "Debian 12's packages: $(tail -n 1 "$work/fetch.log")"
}

# Each package's file in the cache, as apt names it.
package_files() {
  bare_apt --simulate | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*\[\(amd64\|all\)\]).*/\1_\2_\3.deb/p' | sed 's/:/%3a/g' | sort
}

unpack_packages() {
  local deb directory
  mkdir -p "$stage"/usr/{bin,sbin,lib,lib64}
  for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$stage/$directory"; done
  for deb in $(package_files); do
    dpkg-deb --fsys-tarfile "$cache/debs/$deb" | tar -x --keep-directory-symlink -C "$stage"
  done
  chroot "$stage" /sbin/ldconfig
  kernel=$(ls "$stage/usr/lib/modules")
  chroot "$stage" depmod "$kernel"
}

# From its Debian source, static: the packaged one brings 90 MB of libraries, too much for a guest's ramdisk.
build_fio() {
  local source=$work/fio
  mkdir -p "$source"/{lists/partial,parts}
  # This machine's own package sources, asked for sources. Those that have none do not matter.
  cp /etc/apt/sources.list /etc/apt/sources.list.d/*.{sources,list} "$source/parts/" 2>/dev/null || true
  sed -i 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$source"/parts/*
  local apt=(apt-get -q -o APT::Sandbox::User=root -o Dir::State::lists="$source/lists" -o Dir::Etc::sourcelist=/dev/null
    -o Dir::Etc::sourceparts="$source/parts")
  "${apt[@]}" update >"$source/log" 2>&1 || true
  (cd "$source" && "${apt[@]}" source --download-only fio && tar -x -f fio_*.orig.tar.gz) >>"$source/log" 2>&1 ||
    unavailable "fio's Debian source: $(tail -n 1 "$source/log")"
  quietly xen-fio bash -c 'cd "$1"/fio-*/ && ./configure --build-static --disable-native --disable-http \
    --disable-rdma --disable-rados --disable-rbd --disable-gfapi --disable-numa --disable-lex &&
    make -j2 fio && strip -o "$1/fio" fio' fio "$source"
  mv "$source/fio" "$cache/fio"
}

# ---------------------------------------------------------------------------------------------------------------------
# Images

# bare_root ROOT: an empty tree with merged /usr.
bare_root() {
  local directory
  mkdir -p "$1"/{usr/{bin,sbin,lib,lib64},proc,sys,dev,run,tmp,mnt,etc,var,root}
  for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$1/$directory"; done
}

# module_files MODULE...: their files and those they need, in the order to load them.
module_files() {
  local module
  for module; do chroot "$stage" modprobe -S "$kernel" --show-depends "$module"; done |
    awk '$1 == "insmod" && !seen[$2]++ {print $2}'
}

# program_files PROGRAM...: they and the libraries they need.
program_files() {
  printf '%s\n' "$@"
  chroot "$stage" ldd "$@" | grep -o '\s/[^ ]* (0x' | sed 's/^\s//; s/ .*//' | sort -u
}

# copy_staged ROOT: copies the staged files named on stdin.
copy_staged() {
  local file
  while read -r file; do
    file=${file#/usr}
    install -D "$stage/usr$file" "$1/usr$file"
  done
}

# link_applets ROOT: busybox under the names of the programs that ROOT lacks.
link_applets() {
  chroot "$stage" busybox --list | while read -r applet; do
    [ -e "$1/usr/bin/$applet" ] || [ -e "$1/usr/sbin/$applet" ] || ln -s busybox "$1/usr/bin/$applet"
  done
}

# pack_ramdisk NAME MODULE...: the tree $work/NAME with busybox and the modules; /modules lists them in order.
pack_ramdisk() {
  local root=$work/$1
  echo /bin/busybox | copy_staged "$root"
  link_applets "$root"
  module_files "${@:2}" | tee "$root/modules" | copy_staged "$root"
  (cd "$root" && find . | cpio -o -H newc --quiet -R 0:0) >"$work/machine/$1"
}

# The kernel without its packing: Xen and xl take the bare ELF as well, and need not unpack the xz payload under
# emulation. Where the payload begins, and how long it is, stands in the boot header, at 0x248 and 0x24c.
unpack_kernel() {
  local image=$stage/boot/vmlinuz-$kernel
  field() { od -An -t "u$2" -j $(($1)) -N "$2" "$image" | tr -d ' '; }
  tail -c "+$((($(field 0x1f1 1) + 1) * 512 + $(field 0x248 4) + 1))" "$image" |
    head -c "$(field 0x24c 4)" | xz -dc --single-stream >"$work/machine/vmlinux" 2>/dev/null || true
  [ "$(head -c 5 "$work/machine/vmlinux" | tail -c 4)" = $'ELF\2' ] || die "the kernel $kernel is packed in an unknown way"
}

build_ramdisks() {
  bare_root "$work/dom0-ramdisk"
  install test/xen/dom0/ramdisk-init "$work/dom0-ramdisk/init"
  pack_ramdisk dom0-ramdisk "${RAMDISK_MODULES[@]}"
  bare_root "$work/guest-ramdisk"
  program_files "${GUEST_PROGRAMS[@]}" | copy_staged "$work/guest-ramdisk"
  install "$cache/fio" "$work/guest-ramdisk/bin/"
  ln -s dash "$work/guest-ramdisk/bin/sh"
  pack_ramdisk guest-ramdisk "${GUEST_MODULES[@]}"
}

# The staged tree less what it has no use for, and the node that runs here.
build_dom0() {
  local root=$work/dom0 node library
  mkdir "$root"
  tar -c -C "$stage" --exclude=./boot --exclude=./usr/lib/modules --exclude='./usr/share/[a-pr-z]*' . | tar -x -C "$root"
  module_files "${DOM0_MODULES[@]}" | copy_staged "$root"
  cp "$stage/usr/lib/modules/$kernel"/modules.* "$root/usr/lib/modules/$kernel/"
  local sdk=$stage/usr
  gcc -O2 -Wall -I"$sdk/include" -L"$sdk/lib/x86_64-linux-gnu" -Wl,-rpath-link,"$sdk/lib/x86_64-linux-gnu" \
    -o "$root/usr/bin/meter" test/xen/dom0/meter.c -lxenctrl -lxenstore
  node=$(readlink -f "$(command -v node)")
  install "$node" "$root/usr/bin/node"
  for library in $(ldd "$node" | sed -n 's|.* => \(/[^ ]*\) .*|\1|p'); do
    [ -e "$root/$library" ] || install -D "$(readlink -f "$library")" "$root/$library"
  done
  link_applets "$root"
  rm -rf "$root"/var/{run,lock}
  ln -s /run "$root/var/run"
  ln -s /run/lock "$root/var/lock"
  mkdir -p "$root"/{boot,srv}
  ln "$work/machine/vmlinux" "$root/boot/vmlinux"
  cp "$stage/boot/vmlinuz-$kernel" "$root/boot/vmlinuz" # as a boot loader takes it
  mke2fs -q -t ext4 -O ^has_journal -d "$root" "$work/machine/dom0.ext4" 4G
}

say "building a machine with Xen, once: fetching Debian's packages"
fetch_packages
if [ ! -x "$cache/fio" ]; then
  say 'building a machine with Xen, once: compiling fio for its guests'
  build_fio
fi
say 'building a machine with Xen, once: its images'
mkdir "$work/machine"
unpack_packages
zcat "$stage/boot/xen-4.17-amd64.gz" >"$work/machine/xen"
unpack_kernel
build_ramdisks
build_dom0
rm -rf "$machine"
mv "$work/machine" "$machine"
stamp xen "$from"
