# What the scripts here share: a server that is started and stopped, what is said of each client, and the
# clients that have to be installed. To be sourced, with `$here` set.
# shellcheck shell=sh disable=SC2034,SC2154

root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/clients
mkdir -p "$work" || exit 1

server_pid=
client_pid=
end_what_was_started() {
    [ -z "$client_pid" ] || kill "$client_pid" 2>/dev/null
    [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null
}
trap end_what_was_started EXIT
trap 'exit 1' HUP INT TERM

# Sets `server`: the program at this path, or this example, built.
example() { # NAME [PATH]
    server=${2:-}
    [ -z "$server" ] || return 0
    (cd "$root" && cargo build --quiet --locked --example "$1") || exit 1
    server=$target/debug/examples/$1
}
# Sets `url` when the server is ready. Its log is in server.log.
launch() { # SERVER ARGUMENT...
    : >"$work/server.out"
    "$@" >"$work/server.out" 2>"$work/server.log" &
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

# Sets `python` and `websockets_version`, or skips.
find_websockets() {
    if ! installed python3; then
        skip "Python websockets" "python3 is not installed"
        return 1
    fi
    python=$work/venv/bin/python
    log=$work/pip.log
    if ! "$python" -c 'import websockets' 2>/dev/null; then
        python3 -m venv "$work/venv" >"$log" 2>&1 &&
            "$python" -m pip install --quiet --disable-pip-version-check websockets >>"$log" 2>&1
    fi
    version='import websockets; print(websockets.__version__)'
    if ! websockets_version=$("$python" -c "$version" 2>/dev/null); then
        skip "Python websockets" "cannot be installed, see $log"
        return 1
    fi
}

# Sets `validator`, a Python that has openapi-spec-validator, or skips.
find_validator() {
    if ! installed python3; then
        skip "openapi-spec-validator" "python3 is not installed"
        return 1
    fi
    validator=$work/venv-openapi/bin/python
    log=$work/pip-openapi.log
    if ! "$validator" -c 'import openapi_spec_validator' 2>/dev/null; then
        python3 -m venv "$work/venv-openapi" >"$log" 2>&1 &&
            "$validator" -m pip install --quiet --disable-pip-version-check \
                openapi-spec-validator >>"$log" 2>&1
    fi
    if ! "$validator" -c 'import openapi_spec_validator' 2>/dev/null; then
        skip "openapi-spec-validator" "cannot be installed, see $log"
        return 1
    fi
}

# Sets `ws`, the path of the npm package, and `ws_version`, or skips.
find_ws() {
    if ! installed node || ! installed npm; then
        skip "npm ws" "node and npm are not installed"
        return 1
    fi
    ws=$work/node/node_modules/ws
    log=$work/npm.log
    if [ ! -d "$ws" ]; then
        mkdir -p "$work/node"
        npm install --silent --no-audit --no-fund --prefix "$work/node" ws >"$log" 2>&1
    fi
    if [ ! -d "$ws" ]; then
        skip "npm ws" "cannot be installed, see $log"
        return 1
    fi
    ws_version=$(node -p "require('$ws/package.json').version")
}

# Sets `browser` and `browser_version`.
find_browser() {
    for browser in chromium chromium-browser google-chrome; do
        if installed "$browser"; then
            browser_version=$("$browser" --version 2>/dev/null | head -n 1)
            return 0
        fi
    done
    return 1
}
