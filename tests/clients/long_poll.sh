#!/bin/sh
# Runs the curl lines of the README's section "Without WebSocket" as they are printed, against the example
# long_poll: only the port is another one.
#
#   tests/clients/long_poll.sh                       builds the example
#   tests/clients/long_poll.sh PATH/TO/long_poll     takes one that has been built
#
# It says PASS, FAIL or SKIP for each; a FAIL makes its exit status 1.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

example long_poll "$@"
if ! installed curl; then
    skip "curl" "not installed"
    exit 0
fi

launch "$server" 127.0.0.1:0
address=${url#http://}
address=${address%%/*}
echo "server: $address"
log=$work/long_poll.log

# The section's first block of shell lines. The last of them would wait for ever, so it is given some seconds.
awk '/^## Without WebSocket/ { on = 1 } on && /^```/ { if (code) exit; code = /sh$/; next } on && code' \
    "$root/README.md" >"$work/long_poll.lines"
sed -e "s/127\.0\.0\.1:9001/$address/g" -e 's/curl -sN/curl -sN --max-time 2/' "$work/long_poll.lines" \
    >"$work/long_poll.commands"
# curl ends a stream that it is not to follow any longer with 28.
sh "$work/long_poll.commands" >"$log" 2>&1
status=$?
[ $status -eq 28 ] && status=0
tr -d '\r' <"$log" >"$log.text"
for expected in '{"status":"queued"}' 'HTTP/1.1 200 OK' 'coracle-cursor: 1' '["hello from curl"]' 'event: open' \
    '"cursor":1'; do
    grep -qF -- "$expected" "$log.text" || {
        echo "there is no: $expected" >>"$log"
        status=1
    }
done
verdict "the lines of the README" $status "$log"
stop
exit $failed
