#!/bin/bash
# build.sh: the addon (build/Release/vbdkit.node) and the compiled TypeScript (dist/), each only when its sources changed.
# Needs no network: Node's headers are taken from beside the running node, else from the npm package node-api-headers.
[ -n "${STAMPS:-}" ] || source "$(dirname "$0")/common.sh"
[ -n "${NODE_VERSION:-}" ] || need_node

build_addon() {
  local prefix
  prefix=$(node -p 'path.dirname(path.dirname(fs.realpathSync(process.execPath)))')
  if [ -e "$prefix/include/node/node_api.h" ]; then
    quietly node-gyp node-gyp configure build --nodedir="$prefix"
  else
    command -v cmake >/dev/null || die "no Node.js headers in $prefix/include/node, and no cmake to do without them" \
      'install cmake, or a Node.js that comes with its headers'
    quietly cmake-js cmake-js build --out build/cmake-js
    mkdir -p build/Release
    cp build/cmake-js/Release/vbdkit.node build/Release/vbdkit.node
  fi
}

# The new tree replaces the old one whole, so that a deleted module cannot live on in dist.
build_types() {
  rm -rf dist.new dist.old
  quietly tsc tsc -p tsconfig.json --outDir dist.new
  [ ! -e dist ] || mv dist dist.old
  mv dist.new dist
  rm -rf dist.old
}

addon_from=$(fingerprint native binding.gyp CMakeLists.txt node_modules/node-addon-api/package.json)
if [ ! -e build/Release/vbdkit.node ] || ! fresh addon "$addon_from"; then
  say 'building the addon'
  build_addon
  stamp addon "$addon_from"
fi

types_from=$(fingerprint lib tsconfig.json package-lock.json)
if [ ! -e dist/lib ] || ! fresh types "$types_from"; then
  say 'compiling TypeScript'
  build_types
  stamp types "$types_from"
fi
