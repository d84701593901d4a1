# What the scripts share: where we are, how to speak, and how to know that nothing has changed. Sourced, never run.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/node_modules/.bin:$PATH:/usr/sbin:/sbin"
STAMPS=.cache/setup # one file per step, holding the fingerprint of what it was made from
mkdir -p "$STAMPS"

say() { printf 'vbdkit: %s\n' "$*" >&2; }

# die REASON REMEDY: one line each, and the exit code of an operator's mistake.
die() {
  say "$1"
  [ $# -lt 2 ] || say "$2"
  exit 2
}

# fingerprint PATH...: one hash over the names and contents of files and folders, and over the node that builds them.
fingerprint() {
  { printf '%s\n' "$NODE_VERSION"; find "$@" -type f -print0 2>/dev/null | sort -z | xargs -0r sha256sum; } |
    sha256sum | cut -d' ' -f1
}

# fresh STEP FINGERPRINT: true when STEP was last done from exactly this.
fresh() { [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$2" ]; }

stamp() { printf '%s\n' "$2" >"$STAMPS/$1"; }

# quietly LABEL COMMAND...: keeps the output in .cache/LABEL.log, and shows its end only when the command fails.
quietly() {
  local log=".cache/$1.log"
  shift
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 40 "$log" >&2
    say "failed: $* (all of it: $log)"
    exit 1
  fi
}

need_node() {
  command -v node >/dev/null || die 'node is not installed' 'install Node.js 20.19 or newer: https://nodejs.org'
  NODE_VERSION=$(node -p 'process.version + " " + process.execPath')
  local version=${NODE_VERSION%% *} major minor
  IFS=. read -r major minor _ <<<"${version#v}"
  if ((major < 20 || (major == 20 && minor < 19))); then
    die "Node.js $version is too old" 'install Node.js 20.19 or newer: https://nodejs.org'
  fi
}

# build_native_tests TREE SANITIZERS: TREE/native_tests. Phases of the tests may want it at the same time.
build_native_tests() {
  mkdir -p "$1"
  (
    flock 8
    cmake -S . -B "$1" -G Ninja -DVBD_SANITIZE="$2" >"$1/cmake.log" 2>&1 || { cat "$1/cmake.log"; exit 1; }
    ninja -C "$1" native_tests
  ) 8>"$1/lock"
}
