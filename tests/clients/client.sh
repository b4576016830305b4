#!/bin/sh
# Tries the example client against servers that were not written here: Python's `websockets`, npm's `ws`, with and without
# TLS.
#
#   tests/clients/client.sh                     builds the example
#   tests/clients/client.sh PATH/TO/client      takes one that has been built
#
# It says PASS, FAIL or SKIP for each; a FAIL makes its exit status 1. What it installs (a Python environment, an npm
# package) is under target/clients.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

example client "$@"
client=$server

until_it_is() { # COMMAND ARGUMENT...
    tries=0
    while ! "$@" && [ $tries -lt 400 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
}

# What is typed, and what has to come back: an echo, a long line, a message in fragments, and an echo by the connection
# that follows when the server has closed the first one.
long=$(head -c 100000 /dev/zero | tr '\0' x)
try() { # NAME SERVER ARGUMENT...
    name=$1
    shift
    launch "$@"
    log=$work/client.log
    printf '%s\n' hello 'grüße, 世界 👋' "$long" large bye >"$work/client.in"
    printf '%s\n' hello 'grüße, 世界 👋' "$long" 'in three fragments' again >"$work/client.expected"
    # It is given no end of its input before everything has come back.
    rm -f "$work/client.out"
    : >"$work/client.out"
    : >"$log"
    {
        cat "$work/client.in"
        # What is sent on a connection that is being closed is lost, and not sent again.
        until_it_is grep -q '^disconnected by server' "$log"
        echo again
        until_it_is cmp -s "$work/client.out" "$work/client.expected"
    } | timeout 60 "$client" "$url" --ca "$root/certs/ca.pem" >"$work/client.out" 2>"$log"
    status=$?
    cmp -s "$work/client.out" "$work/client.expected" || {
        echo "not what was expected came back: see $work/client.out" >>"$log"
        status=1
    }
    for said in 'connected to 127.0.0.1:' 'disconnected by server: it closed the connection, code 1001 "as you wish"' \
        'disconnected by client: as asked for, code 1000'; do
        grep -qF "$said" "$log" || {
            echo "it did not say: $said" >>"$log"
            status=1
        }
    done
    verdict "$name" $status "$log"
    kill "$server_pid"
    wait "$server_pid" 2>/dev/null
    server_pid=
}

certificate=$root/certs/server.pem
key=$root/certs/server.key
if find_websockets; then
    try "Python websockets $websockets_version" "$python" "$here/websockets_server.py"
    try "Python websockets $websockets_version with TLS" "$python" "$here/websockets_server.py" "$certificate" "$key"
fi
if find_ws; then
    try "npm ws $ws_version" node "$here/ws_server.cjs" "$ws"
    try "npm ws $ws_version with TLS" node "$here/ws_server.cjs" "$ws" "$certificate" "$key"
fi
exit "$failed"
