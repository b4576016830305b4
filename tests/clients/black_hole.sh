#!/bin/sh
# The example client on a network that loses what the server sends: the server is in a network namespace whose route back
# to the client is a black hole for a while. Needs Linux, root and iproute2; what it makes it removes.
#
#   tests/clients/black_hole.sh                                 builds the examples
#   tests/clients/black_hole.sh PATH/TO/echo PATH/TO/client     takes those that have been built
#
# It says PASS, FAIL or SKIP for each; a FAIL makes its exit status 1.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

example client ${2:+"$2"}
client=$server
example echo ${1:+"$1"}

# Two hosts and a cable, beside the machine's own network.
here_space=coracle-$$-here
there_space=coracle-$$-there
client_address=192.0.2.1
server_address=192.0.2.2
remove_the_network() {
    end_what_was_started
    ip netns delete "$here_space" 2>/dev/null
    ip netns delete "$there_space" 2>/dev/null
}
log=$work/black_hole.log
make_the_network() {
    ip netns add "$here_space" &&
        ip netns add "$there_space" &&
        ip -n "$here_space" link add cable type veth peer name cable netns "$there_space" &&
        ip -n "$here_space" address add "$client_address/30" dev cable &&
        ip -n "$there_space" address add "$server_address/30" dev cable &&
        ip -n "$here_space" link set cable up &&
        ip -n "$there_space" link set cable up
}
if ! installed ip; then
    skip "a black hole" "iproute2 is not installed"
    exit 0
fi
trap remove_the_network EXIT
if ! make_the_network >"$log" 2>&1; then
    skip "a black hole" "no network of one's own can be made, see $log"
    exit 0
fi
black_hole() { # add|delete
    ip -n "$there_space" route "$1" blackhole "$client_address/32"
}
in_the_network() { # COMMAND ARGUMENT...
    ip netns exec "$here_space" timeout 120 "$@"
}

launch ip netns exec "$there_space" "$server" "$server_address:0"

# Waits until a file has a line with this text, or for half a minute.
until_it_says() { # FILE TEXT
    tries=0
    while ! grep -qF "$2" "$1"; do
        tries=$((tries + 1))
        if [ $tries -gt 600 ]; then
            echo "$1 never said: $2" >>"$log"
            return 1
        fi
        sleep 0.05
    done
}

# Nothing comes back from the first packet on.
black_hole add
in_the_network "$client" "$url" --seconds 2 --attempts 0 </dev/null >"$log" 2>&1
status=$?
expected="connecting timed out: there was no WebSocket after 2s (tried ${server_address}:"
if [ $status -eq 1 ] && grep -qF "$expected" "$log"; then status=0; else status=1; fi
verdict "an address that does not answer: the phase, the deadline and the address are told" $status "$log"
black_hole delete

# A connection that falls silent, and comes back.
out=$work/black_hole.out
told=$work/black_hole.told
: >"$out"
: >"$told"
: >"$log"
{
    echo before
    until_it_says "$out" before
    black_hole add
    # The first attempt to come back finds nobody either.
    until_it_says "$told" 'connecting timed out: there was no WebSocket after 2s'
    echo meanwhile
    black_hole delete
    until_it_says "$out" meanwhile
} | in_the_network env RUST_LOG=coracle=info "$client" "$url" --seconds 2 --ping 1 >"$out" 2>"$told"
status=$?
if [ "$(cat "$out")" != "before
meanwhile" ]; then
    echo "not what was expected came back:" >>"$log"
    cat "$out" >>"$log"
    status=1
fi
for said in 'disconnected by client: no answer to a ping' 'connecting timed out: there was no WebSocket after 2s' \
    'disconnected by client: as asked for, code 1000'; do
    grep -qF "$said" "$told" || {
        echo "it did not say: $said" >>"$log"
        status=1
    }
done
cat "$told" >>"$log"
verdict "a connection that falls silent: noticed by a ping, and come back from" $status "$log"
exit "$failed"
