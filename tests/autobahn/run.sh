#!/bin/sh
# Asks the Autobahn|Testsuite what it thinks of the echo example. README.md says where to get the suite.
#
#   tests/autobahn/run.sh [all|core|limits|compression|compression-quick|CASES]
#
#   WSTEST='wstest'          a command that is the suite's `wstest`; or
#   AUTOBAHN=DIR             a directory with setup.sh and run-server-suite.sh (default:
#                            ../shared/autobahn beside the project)
#   ECHO_ARGS='--deflate'    what the example is told; `all` otherwise takes --deflate and
#                            --deflate-dedicated, one after the other
#   ECHO_SERVER=PATH         an example that has been built
#
# Its exit status is 0 if every case passes, as strictly as it can be asked. `all` writes SUMMARY.md. Reports
# and whatever is installed are under target/autobahn.
set -u

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cases=${1:-all}

fail() {
    echo "$*" >&2
    exit 1
}

[ $# -le 1 ] || fail "one argument, please: sections and cases are joined by commas"
command -v python3 >/dev/null 2>&1 || fail "python3 is not installed"
python3 "$here/judge.py" list "$cases" >/dev/null || exit 1

mkdir -p "${CARGO_TARGET_DIR:-$root/target}/autobahn" || exit 1
CARGO_TARGET_DIR=$(cd "${CARGO_TARGET_DIR:-$root/target}" && pwd)
export CARGO_TARGET_DIR
work=$CARGO_TARGET_DIR/autobahn

# --- The suite ----------------------------------------------------------------------------------
if [ -z "${WSTEST:-}" ]; then
    suite=${AUTOBAHN:-$root/../shared/autobahn}
    [ -f "$suite/run-server-suite.sh" ] || fail "there is no suite: set WSTEST or AUTOBAHN, see $here/README.md"
    suite=$(cd "$suite" && pwd)
    AUTOBAHN_VENV=$work/venv
    export AUTOBAHN_VENV
    # Only a setup that came to its end leaves its sum, so one that did not is done again.
    sum=$(cksum <"$suite/setup.sh")
    if [ "$sum" != "$(cat "$work/venv.sum" 2>/dev/null)" ]; then
        echo "installing the suite"
        rm -rf "$work/venv" "$work/venv.sum"
        timeout 600 "$suite/setup.sh" "$work/venv" >"$work/setup.log" 2>&1 ||
            fail "the suite cannot be installed, see $work/setup.log"
        echo "$sum" >"$work/venv.sum"
    fi
fi

# --- The server ---------------------------------------------------------------------------------
if [ -n "${ECHO_SERVER:-}" ]; then
    server=$ECHO_SERVER
else
    (cd "$root" && cargo build --quiet --locked --release --example echo) || exit 1
    server=$CARGO_TARGET_DIR/release/examples/echo
fi

server_pid=
suite_pid=
cleanup() {
    [ -z "$suite_pid" ] || kill "$suite_pid" 2>/dev/null
    [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

start_server() { # REPORTS ARGUMENTS: sets server_pid and url
    : >"$1/server.out"
    # Section 9 sends messages of 16 MiB, and of 4 MiB in 65 536 fragments and an empty one.
    # shellcheck disable=SC2086 # the arguments are words
    "$server" 127.0.0.1:0 --max-message 33554432 --max-fragments 65537 $2 >"$1/server.out" 2>"$1/server.log" &
    server_pid=$!
    url=
    tries=0
    while [ -z "$url" ]; do
        url=$(sed -n 's/^listening on //p' "$1/server.out")
        tries=$((tries + 1))
        if [ $tries -gt 200 ] || ! kill -0 "$server_pid" 2>/dev/null; then
            cat "$1/server.log" >&2
            fail "the server does not start"
        fi
        sleep 0.05
    done
}

stop_server() { # its status is the server's
    kill -INT "$server_pid" 2>/dev/null
    # Longer than it may take to cut the last session.
    tries=0
    while kill -0 "$server_pid" 2>/dev/null && [ $tries -lt 300 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
    kill -KILL "$server_pid" 2>/dev/null
    wait "$server_pid"
    set -- $?
    server_pid=
    return "$1"
}

# --- A run --------------------------------------------------------------------------------------
case $cases in
all | core | limits | compression | compression-quick) label=$cases ;;
*) label=chosen ;;
esac
# Several times what they take; whatever hangs does not hang for ever.
case $cases in
core | compression-quick) seconds=300 ;;
*) seconds=1800 ;;
esac

failed=0
runs=
run() { # ARGUMENTS of the example
    reports=$work/$label$(printf %s "$1" | tr -cs 'a-z0-9-' '_')
    rm -rf "$reports"
    mkdir -p "$reports" || exit 1
    start_server "$reports" "$1"
    python3 "$here/judge.py" spec "$cases" "$url" "$reports" >"$reports/spec.json" || exit 1
    began=$(date +%s)
    # In the background, because a shell hears no signal while it waits for what is in the foreground.
    if [ -n "${WSTEST:-}" ]; then
        # shellcheck disable=SC2086 # the command is words
        timeout -k 10 "$seconds" $WSTEST -m fuzzingclient -s "$reports/spec.json" >"$reports/suite.log" 2>&1 &
    else
        timeout -k 10 "$((seconds + 60))" "$suite/run-server-suite.sh" "$url" "$reports" \
            "$(python3 "$here/judge.py" list "$cases" | tr '\n' ',')" \
            --strict --require-all --timeout "$seconds" >"$reports/suite.log" 2>&1 &
    fi
    suite_pid=$!
    wait "$suite_pid"
    status=$?
    suite_pid=
    took=$(($(date +%s) - began))
    stop_server
    stopped=$?

    name="echo${1:+ $1}"
    python3 "$here/judge.py" judge "$cases" "$reports" "$name" "$took" || failed=1
    # What the reports do not say, such as an error of the suite's own.
    if [ $status -ne 0 ] || grep -q '^Traceback' "$reports/suite.log"; then
        echo "the suite ended with $status, see $reports/suite.log" >&2
        failed=1
    fi
    if [ $stopped -ne 0 ]; then
        echo "the server ended with $stopped" >&2
        cat "$reports/server.log" >&2
        failed=1
    fi
    runs="$runs $(basename "$reports")"
    echo "reports: $reports/index.html"
}

if [ -n "${ECHO_ARGS+set}" ]; then
    run "$ECHO_ARGS"
else
    run --deflate
    [ "$cases" != all ] || run --deflate-dedicated
fi

if [ "$cases" = all ]; then
    # shellcheck disable=SC2086 # names of our own, without spaces
    (cd "$work" && python3 "$here/judge.py" summary $runs) >"$work/SUMMARY.md" &&
        cp "$work/SUMMARY.md" "$here/SUMMARY.md" || failed=1
fi
exit $failed
