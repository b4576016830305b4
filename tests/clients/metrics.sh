#!/bin/sh
# What promtool says to the numbers of a server: `promtool check metrics` reads them and looks for names
# and types that are not as they should be.
#
#   tests/clients/metrics.sh                           takes the promtool that is there, or gets Debian's
#   PROMTOOL=PATH/TO/promtool tests/clients/metrics.sh
#
# Debian's is unpacked below target/ and not installed: its package would start a server. It says PASS, FAIL or
# SKIP; a FAIL makes its exit status 1.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

# Sets `promtool`, or skips.
find_promtool() {
    promtool=${PROMTOOL:-$(command -v promtool)} && [ -n "$promtool" ] && return 0
    promtool=$work/prometheus/usr/bin/promtool
    [ -x "$promtool" ] && return 0
    if ! installed apt-get || ! installed dpkg; then
        skip "promtool" "not installed, and this is no Debian"
        return 1
    fi
    log=$work/apt.log
    mkdir -p "$work/prometheus"
    # Whoever may refresh the lists does, if the package cannot be had without.
    (cd "$work/prometheus" && { apt-get download prometheus ||
        { apt-get update && apt-get download prometheus; }; } &&
        dpkg -x prometheus_*.deb . && rm prometheus_*.deb) >"$log" 2>&1
    if [ ! -x "$promtool" ]; then
        skip "promtool" "cannot be had, see $log"
        return 1
    fi
}

if find_promtool; then
    log=$work/promtool.log
    (cd "$root" && PROMTOOL=$promtool cargo test --quiet --locked --test metrics promtool -- --ignored) \
        >"$log" 2>&1
    verdict "promtool check metrics: $("$promtool" --version 2>&1 | head -n 1)" $? "$log"
fi
exit "$failed"
