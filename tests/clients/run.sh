#!/bin/sh
# Tries clients that are not ours against the echo example.
#
#   tests/clients/run.sh               builds the example and tries every client that is installed
#   tests/clients/run.sh PATH/TO/echo  takes a server that has been built
#
# Each of them meets the server three times: without compression, with --deflate and with
# --deflate-dedicated, and checks that permessage-deflate is agreed on exactly where it should be.
#
# It says PASS, FAIL or SKIP for each; a FAIL makes its exit status 1. What it installs (a Python
# environment with `websockets`, the npm package `ws`) is under target/clients.
set -u

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/clients
mkdir -p "$work" || exit 1

if [ $# -gt 0 ]; then
    server=$1
else
    (cd "$root" && cargo build --quiet --example echo) || exit 1
    server=$target/debug/examples/echo
fi

server_pid=
trap '[ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null' EXIT
trap 'exit 1' HUP INT TERM

start() { # [FLAG]
    : >"$work/server.out"
    "$server" 127.0.0.1:0 --max-message 16777216 "$@" >"$work/server.out" 2>"$work/server.log" &
    server_pid=$!
    url=
    tries=0
    while [ -z "$url" ]; do
        url=$(sed -n 's/^listening on //p' "$work/server.out")
        tries=$((tries + 1))
        if [ $tries -gt 200 ] || ! kill -0 "$server_pid" 2>/dev/null; then
            echo "the server does not start:" >&2
            cat "$work/server.log" >&2
            exit 1
        fi
        sleep 0.05
    done
    http=http${url#ws}
    echo "server: $url${1:+ $1}"
}
stop() {
    kill -TERM "$server_pid"
    wait "$server_pid"
    status=$?
    server_pid=
    verdict "the server stops by SIGTERM with status 0" $status "$work/server.log"
}

failed=0
verdict() { # NAME STATUS LOG
    if [ "$2" -eq 0 ]; then
        echo "PASS  $1"
    else
        echo "FAIL  $1"
        sed 's/^/      /' "$3"
        failed=1
    fi
}
skip() { # NAME REASON
    echo "SKIP  $1: $2"
}
installed() {
    command -v "$1" >/dev/null 2>&1
}

start

# --- curl ---------------------------------------------------------------------------------------
if installed curl; then
    log=$work/curl-plain.log
    curl --silent --show-error --include --max-time 20 "$http" >"$log" 2>&1 &&
        grep -q '^HTTP/1.1 426 ' "$log" &&
        grep -qi '^upgrade: websocket' "$log" &&
        grep -q 'connect with a WebSocket client' "$log"
    verdict "curl: a plain request is told what to do" $? "$log"

    log=$work/curl-upgrade.log
    # Nobody speaks after the 101, so curl ends by its own timeout, with 28.
    curl --silent --show-error --include --no-buffer --http1.1 --max-time 1 \
        --header 'Connection: Upgrade' --header 'Upgrade: websocket' \
        --header 'Sec-WebSocket-Version: 13' \
        --header 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' "$http" >"$log" 2>&1
    [ $? -eq 28 ] && grep -q '^HTTP/1.1 101 ' "$log" &&
        grep -q '^Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=' "$log"
    verdict "curl: a handshake gets its 101" $? "$log"

    log=$work/curl-post.log
    curl --silent --show-error --include --max-time 20 --data hello "$http" >"$log" 2>&1 &&
        grep -q '^HTTP/1.1 405 ' "$log" && grep -qi '^allow: GET' "$log"
    verdict "curl: a POST is told that only GET is served" $? "$log"

    log=$work/curl-head.log
    curl --silent --show-error --head --max-time 20 "$http" >"$log" 2>&1 &&
        grep -q '^HTTP/1.1 405 ' "$log"
    verdict "curl: a HEAD is answered" $? "$log"

    log=$work/curl-tls.log
    # The handshake fails, and it fails at once.
    curl --silent --show-error --max-time 20 "https${url#ws}" >"$log" 2>&1
    [ $? -eq 35 ]
    verdict "curl: https on the plain port fails at once" $? "$log"
else
    skip curl "not installed"
fi

# What cannot be tried stays as it is here.
try_python() { :; }
try_node() { :; }
try_browser() { :; }

# --- Python: websockets -------------------------------------------------------------------------
if installed python3; then
    python=$work/venv/bin/python
    log=$work/pip.log
    if ! "$python" -c 'import websockets' 2>/dev/null; then
        python3 -m venv "$work/venv" >"$log" 2>&1 &&
            "$python" -m pip install --quiet --disable-pip-version-check websockets >>"$log" 2>&1
    fi
    if "$python" -c 'import websockets' 2>/dev/null; then
        version=$("$python" -c 'import websockets; print(websockets.__version__)')
        try_python() { # NAME LOG [FLAG]
            timeout 60 "$python" "$here/websockets_client.py" "$url" ${3:+"$3"} >"$2" 2>&1
            verdict "Python websockets $version$1" $? "$2"
        }
    else
        skip "Python websockets" "cannot be installed, see $log"
    fi
else
    skip "Python websockets" "python3 is not installed"
fi

# --- Node: ws -----------------------------------------------------------------------------------
if installed node && installed npm; then
    log=$work/npm.log
    if [ ! -d "$work/node/node_modules/ws" ]; then
        mkdir -p "$work/node"
        npm install --silent --no-audit --no-fund --prefix "$work/node" ws >"$log" 2>&1
    fi
    if [ -d "$work/node/node_modules/ws" ]; then
        node_version=$(node -p "require('$work/node/node_modules/ws/package.json').version")
        try_node() { # NAME LOG [FLAG]
            timeout 60 node "$here/ws_client.cjs" "$work/node/node_modules/ws" "$url" \
                ${3:+"$3"} >"$2" 2>&1
            verdict "npm ws $node_version$1" $? "$2"
        }
    else
        skip "npm ws" "cannot be installed, see $log"
    fi
else
    skip "npm ws" "node and npm are not installed"
fi

# --- Chromium -----------------------------------------------------------------------------------
browser=
for candidate in chromium chromium-browser google-chrome; do
    if [ -z "$browser" ] && installed "$candidate"; then
        browser=$candidate
    fi
done
if [ -z "$browser" ]; then
    skip Chromium "not installed"
elif ! installed python3; then
    skip Chromium "python3, which serves the page, is not installed"
else
    browser_version=$("$browser" --version 2>/dev/null | head -n 1)
    try_browser() { # NAME LOG [FLAG]
        timeout 120 python3 "$here/browser.py" "$browser" "$work/profile" "$url" \
            ${3:+"$3"} >"$2" 2>&1
        verdict "$browser_version, headless$1" $? "$2"
    }
fi

# --- Each with and without compression ----------------------------------------------------------
try_python '' "$work/python.log"
try_node '' "$work/node.log"
try_browser '' "$work/browser.log"
stop
for flag in --deflate --deflate-dedicated; do
    start $flag
    try_python ", $flag" "$work/python$flag.log" $flag
    try_node ", $flag" "$work/node$flag.log" $flag
    try_browser ", $flag" "$work/browser$flag.log" $flag
    stop
done
exit $failed
