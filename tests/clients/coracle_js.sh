#!/bin/sh
# The browser's module, assets/coracle.js: in Node, against a server in the same process and under a clock that
# does not wait.
#
#   tests/clients/coracle_js.sh [ARGUMENT...]    arguments are for `node --test`, such as --test-name-pattern=rooms
#
# It says PASS, FAIL or SKIP; a FAIL makes its exit status 1.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

if ! installed node; then
    skip "coracle.js in Node" "not installed"
    exit 0
fi
if ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; then
    skip "coracle.js in Node" "it needs Node 20, and this is $(node --version)"
    exit 0
fi

# A browser takes what it is told to be a module for one; Node goes by the name.
cp "$root/assets/coracle.js" "$work/coracle.mjs" || exit 1
log=$work/coracle_js.log
COPY=$work/coracle.mjs timeout 300 node --test "$@" "$here/coracle_test.mjs" >"$log" 2>&1
verdict "coracle.js in Node $(node --version)" $? "$log"
exit "$failed"
