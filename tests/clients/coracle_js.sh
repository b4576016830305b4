#!/bin/sh
# The browser's module, assets/coracle.js: in Node, against a server in the same process and under a clock that
# does not wait; and in headless Chromium, against the example long_poll behind a proxy that cuts.
#
#   tests/clients/coracle_js.sh                            builds the example
#   tests/clients/coracle_js.sh --server PATH/TO/long_poll takes one that has been built
#
# It says PASS, FAIL or SKIP; a FAIL makes its exit status 1.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

server=
if [ $# -eq 2 ] && [ "$1" = --server ]; then
    server=$2
elif [ $# -gt 0 ]; then
    echo "usage: $0 [--server PATH]" >&2
    exit 2
fi

if ! installed node; then
    skip "coracle.js in Node" "not installed"
elif ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; then
    skip "coracle.js in Node" "it needs Node 20, and this is $(node --version)"
else
    # A browser takes what it is told to be a module for one; Node goes by the name.
    cp "$root/assets/coracle.js" "$work/coracle.mjs" || exit 1
    log=$work/coracle_js.log
    COPY=$work/coracle.mjs timeout 300 node --test "$here/coracle_test.mjs" >"$log" 2>&1
    verdict "coracle.js in Node $(node --version)" $? "$log"
fi

if ! find_browser; then
    skip "coracle.js in Chromium" "not installed"
elif ! installed python3; then
    skip "coracle.js in Chromium" "python3, which is the proxy, is not installed"
else
    example long_poll "$server"
    log=$work/coracle_browser.log
    timeout 300 python3 "$here/coracle_browser.py" "$server" "$browser" "$work/coracle-profile" \
        "$root/assets/coracle.js" >"$log" 2>&1
    verdict "coracle.js in $browser_version, headless, through a proxy that cuts" $? "$log"
fi
exit "$failed"
