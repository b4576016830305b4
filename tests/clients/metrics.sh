#!/bin/sh
# What promtool says to the numbers of a server: `promtool check metrics` reads them and looks for names
# and types that are not as they should be. First the page of the example metrics, then every number that there is.
#
#   tests/clients/metrics.sh                       builds the example
#   tests/clients/metrics.sh PATH/TO/metrics       takes one that has been built
#   PROMTOOL=PATH/TO/promtool tests/clients/metrics.sh
#
# It takes the promtool that is there, or gets Debian's, for which Debian's package prometheus can be installed as well.
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

if ! find_promtool; then
    exit 0
fi
promtool_version=$("$promtool" --version 2>&1 | head -n 1)

if ! installed curl; then
    skip "promtool check metrics: the example" "curl is not installed"
else
    example metrics "$@"
    launch "$server" 127.0.0.1:0 --numbers 127.0.0.1:0
    # It says so before it says that it listens.
    page=$(sed -n 's/^numbers at //p' "$work/server.log")
    log=$work/promtool-page.log
    curl --silent --show-error --fail --max-time 20 "$page" >"$work/metrics.txt" 2>"$log" &&
        "$promtool" check metrics <"$work/metrics.txt" >"$log" 2>&1
    verdict "promtool check metrics: the example ($promtool_version)" $? "$log"
    # An empty page would be fine with promtool.
    grep -q '^coracle_sessions_active 0$' "$work/metrics.txt" &&
        grep -q '^# TYPE shop_orders_total counter$' "$work/metrics.txt"
    verdict "the page has the server's numbers and the application's" $? "$work/metrics.txt"
    curl --silent --output /dev/null --max-time 20 --write-out '%{http_code}\n' \
        "http://${url#ws://}metrics" >"$log" 2>&1
    grep -qx 426 "$log"
    verdict "it is not on the public listener" $? "$log"
    stop
fi

log=$work/promtool.log
# With the features of a build that is there, if somebody names them.
(cd "$root" && PROMTOOL=$promtool cargo test --quiet --locked ${FEATURES:+--features "$FEATURES"} --test metrics_page \
    promtool -- --ignored) >"$log" 2>&1
verdict "promtool check metrics: every number ($promtool_version)" $? "$log"
exit "$failed"
