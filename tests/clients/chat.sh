#!/bin/sh
# Two people in the example chat, in headless Chromium: they talk, one reloads, the server goes away and
# comes back; and others who have no WebSocket, by the server's fallbacks.
#
#   tests/clients/chat.sh                              builds the example
#   tests/clients/chat.sh --server PATH/TO/chat        takes one that has been built
#   tests/clients/chat.sh --pictures DIRECTORY         leaves screenshots there
#
# It says PASS, FAIL or SKIP; a FAIL makes its exit status 1.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

server=
pictures=
while [ $# -gt 1 ]; do
    case $1 in
    --server) server=$2 ;;
    --pictures) pictures=$2 ;;
    *) break ;;
    esac
    shift 2
done
if [ $# -gt 0 ]; then
    echo "usage: $0 [--server PATH] [--pictures DIRECTORY]" >&2
    exit 2
fi
example chat "$server"

if ! find_browser; then
    skip "chat in Chromium" "not installed"
elif ! installed python3; then
    skip "chat in Chromium" "python3, which drives it, is not installed"
else
    log=$work/chat-blocked.log
    timeout 300 python3 "$here/chat.py" --blocked "$server" "$browser" "$work/chat-profile" >"$log" 2>&1
    verdict "chat: without WebSocket in $browser_version, headless" $? "$log"
    log=$work/chat.log
    timeout 300 python3 "$here/chat.py" "$server" "$browser" "$work/chat-profile" \
        ${pictures:+"$pictures"} >"$log" 2>&1
    verdict "chat: two people in $browser_version, headless" $? "$log"
fi
exit "$failed"
