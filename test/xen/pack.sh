#!/bin/bash
# pack.sh TAR: what one boot brings to dom0's root: this package as a user has it, installed with its command on PATH (what
# `npm pack` ships, the addon as the installation leaves it, the packages it depends on); native_tests; the tests of
# suite/, compiled; and the guest's ramdisk. Expects scripts/build.sh and the native tests to be built.
source "$(dirname "$0")/../../scripts/common.sh"
tar=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
package=$root/usr/lib/node_modules/vbdkit

mkdir -p "$package/build/Release" "$root/usr/bin" "$root/boot"
npm pack --silent --ignore-scripts --pack-destination "$work" >/dev/null
tar -x -C "$package" --strip-components 1 -f "$work"/vbdkit-*.tgz
strip -g -o "$package/build/Release/vbdkit.node" build/Release/vbdkit.node
npm ls --omit=dev --all --parseable | sed "s|^$PWD/||" | grep '^node_modules/' | tar -c -T - | tar -x -C "$package"
ln -s ../lib/node_modules/vbdkit/bin/vbdkit.js "$root/usr/bin/vbdkit"

rig=$root/opt/rig
mkdir -p "$rig/node_modules"
ln -s /usr/lib/node_modules/vbdkit "$rig/node_modules/vbdkit"
strip -g -o "$rig/native_tests" build/core/native_tests
install test/xen/dom0/init test/xen/dom0/job "$rig/"
install test/xen/guest/init "$rig/guest-init"
quietly xen-suite tsc -p test/xen/tsconfig.json --outDir "$rig/suite"
echo '{ "type": "module" }' >"$rig/package.json"

# A second archive behind the first: the kernel unpacks them one after another.
mkdir "$work/guest"
install test/xen/guest/init "$work/guest/init"
{ cat .cache/xen/machine/guest-ramdisk; (cd "$work/guest" && find . | cpio -o -H newc --quiet -R 0:0); } >"$root/boot/guest-ramdisk"
tar -c -C "$root" --owner=0 --group=0 -f "$tar" .
