#!/bin/sh
# Tries curl against the example attached_app, with the lines of the README, and has its description checked.
#
#   tests/clients/http.sh                       builds the example
#   tests/clients/http.sh PATH/TO/attached_app  takes one that has been built
#
# It says PASS, FAIL or SKIP for each; a FAIL makes its exit status 1. What it installs (a Python
# environment with `openapi-spec-validator`) is under target/clients.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

example attached_app "$@"
if ! installed curl; then
    skip "curl" "not installed"
    exit 0
fi

launch "$server" 127.0.0.1:0
# The line is "listening on http://ADDRESS/".
base=${url%/}
echo "server: $base"
log=$work/http.log

# Runs curl, and looks for each of these in what it says.
check() { # NAME EXPECTED... -- CURL_ARGUMENT...
    name=$1
    shift
    expected=
    while [ "$1" != -- ]; do
        expected="$expected$1
"
        shift
    done
    shift
    curl --silent --show-error --max-time 20 --include "$@" >"$log" 2>&1
    status=$?
    tr -d '\r' <"$log" >"$log.text"
    while IFS= read -r line; do
        [ -z "$line" ] || grep -qiF -- "$line" "$log.text" || {
            echo "there is no: $line" >>"$log"
            status=1
        }
    done <<LINES
$expected
LINES
    verdict "curl: $name" $status "$log"
}

check "a route" "HTTP/1.1 200" "hello world" -- "$base/hello/world"
check "a JSON endpoint" "HTTP/1.1 202" '{"room":"lobby","members":0}' -- \
    --json '{"text":"hello"}' "$base/rooms/lobby"
check "what is no JSON" "HTTP/1.1 400" "not as it should be" -- --json hello "$base/rooms/lobby"
check "a body in chunks" "HTTP/1.1 202" '"members":0' -- \
    --json '{"text":"hello"}' --header 'Transfer-Encoding: chunked' "$base/rooms/lobby"
check "a body that waits for its 100" "HTTP/1.1 100" "HTTP/1.1 202" -- \
    --json '{"text":"hello"}' --header 'Expect: 100-continue' "$base/rooms/lobby"
head -c 20000 /dev/zero | tr '\0' x >"$work/large"
check "a body that is too large" "HTTP/1.1 413" "16384 bytes" -- \
    --data-binary "@$work/large" "$base/rooms/lobby"
check "a file" "HTTP/1.1 200" "content-type: text/javascript" "etag: W/" -- "$base/static/app.js"
check "the page of a folder" "HTTP/1.1 200" "<h1>The lobby</h1>" -- "$base/static/"
check "a folder without its slash" "HTTP/1.1 301" "HTTP/1.1 200" -- --location "$base/static"
check "a part of a file" "HTTP/1.1 206" "content-range: bytes 0-14/" "<!doctype html>" -- \
    --range 0-14 "$base/static/"
check "nothing outside of the folder" "HTTP/1.1 404" -- \
    --path-as-is "$base/static/../attached_app.rs"
check "a HEAD" "HTTP/1.1 200" "Content-Length: 12" -- --head "$base/hello/world"
check "another method" "HTTP/1.1 405" "allow: GET, HEAD, OPTIONS" -- -X DELETE "$base/hello/world"
check "the fallback" "HTTP/1.1 404" "begin at /static/" -- "$base/elsewhere"
check "health" "HTTP/1.1 200" "live" "ready" -- "$base/healthz" "$base/readyz"
check "a page of another origin" "HTTP/1.1 403" -- \
    --header 'Origin: https://evil.example' "$base/hello/world"
check "one connection for two requests" "hello a" "hello b" "connection #0" "Re-using" -- \
    --verbose "$base/hello/a" "$base/hello/b"

if find_validator; then
    log=$work/openapi.log
    curl --silent --show-error --max-time 20 "$base/openapi.json" >"$work/openapi.json" 2>"$log" &&
        "$validator" -m openapi_spec_validator "$work/openapi.json" >"$log" 2>&1
    verdict "openapi-spec-validator: the description is one" $? "$log"
    grep -q '"/rooms/{room}"' "$work/openapi.json" && grep -q '"/readyz"' "$work/openapi.json"
    verdict "it has the routes and the server's own endpoints" $? "$work/openapi.json"
    log=$work/http.log
fi

check "a route stops the server" "HTTP/1.1 200" "it stops" "Connection: close" -- \
    -X POST "$base/stop"
wait "$server_pid"
status=$?
server_pid=
verdict "the server ends with status 0" $status "$work/server.log"
exit "$failed"
