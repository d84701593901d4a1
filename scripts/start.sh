#!/bin/bash
# start.sh [OPTION...]: what `npm start` runs: sets up what is missing, then the demo. Options are those of `vbdkit demo`.
scripts=$(cd "$(dirname "$0")" && pwd)
bash "$scripts/setup.sh" start || exit
# npm runs us in the package's folder; a relative --image is meant from where the operator stands.
cd "${INIT_CWD:-$PWD}" || exit
exec node "$scripts/../bin/vbdkit.js" demo "$@"
