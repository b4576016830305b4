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
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

example echo "$@"

start() { # [FLAG]
    launch "$server" 127.0.0.1:0 --max-message 16777216 --frames 127.0.0.1:0 "$@"
    frames=$(sed -n 's/^frames on //p' "$work/server.out")
    http=http${url#ws}
    echo "server: $url${1:+ $1}"
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

# --- Python, without WebSocket ------------------------------------------------------------------
if installed python3; then
    timeout 60 python3 "$here/frames_client.py" "$frames" >"$work/frames.log" 2>&1
    verdict "Python: length-prefixed frames" $? "$work/frames.log"
else
    skip "Python, length-prefixed frames" "python3 is not installed"
fi

# What cannot be tried stays as it is here.
try_python() { :; }
try_node() { :; }
try_browser() { :; }

# --- Python: websockets -------------------------------------------------------------------------
if find_websockets; then
    try_python() { # NAME LOG [FLAG]
        timeout 60 "$python" "$here/websockets_client.py" "$url" ${3:+"$3"} >"$2" 2>&1
        verdict "Python websockets $websockets_version$1" $? "$2"
    }
fi

# --- Node: ws -----------------------------------------------------------------------------------
if find_ws; then
    try_node() { # NAME LOG [FLAG]
        timeout 60 node "$here/ws_client.cjs" "$ws" "$url" ${3:+"$3"} >"$2" 2>&1
        verdict "npm ws $ws_version$1" $? "$2"
    }
fi

# --- Chromium -----------------------------------------------------------------------------------
if ! find_browser; then
    skip Chromium "not installed"
elif ! installed python3; then
    skip Chromium "python3, which serves the page, is not installed"
else
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
exit "$failed"
