#!/bin/sh
# Tries clients that are not ours against the wss example: versions, names, client certificates, alerts,
# sessions that are resumed, one port for both, and new certificates while it runs.
#
#   tests/clients/tls.sh              builds the example and tries every client that is installed
#   tests/clients/tls.sh PATH/TO/wss  takes a server that has been built
#
# It says PASS, FAIL or SKIP for each; a FAIL makes its exit status 1. Which alert is right is what
# RFC 8446 section 6.2 says for TLS 1.3, and RFC 5246 section 7.2.2 and appendix E.1 for older
# versions. It needs `openssl`; what it installs and the certificates that it makes are under
# target/clients.
set -u

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

installed openssl || {
    skip TLS "openssl is not installed"
    exit 0
}
example wss "$@"
# The log says why a handshake has failed, and that files have been read.
RUST_LOG=coracle=debug
export RUST_LOG

certs=$root/certs
trusted=$certs/ca.pem
made=$work/certs
logs=$work/tls
rm -rf "$made" "$logs"
mkdir -p "$made" "$logs" || exit 1

start() { # [OPTION...]
    launch "$server" 127.0.0.1:0 --max-message 2097152 --watch 0 "$@"
    port=${url##*:}
    port=${port%/}
    https=https://localhost:$port/
    echo "server: $url${*:+ $*}"
}

count=0
next_log() { # sets `log`
    count=$((count + 1))
    log=$logs/$count.log
    : >"$log"
}

# A condition that comes true soon, or does not.
eventually() { # COMMAND...
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -le 400 ] || return 1
        sleep 0.05
    done
}
# shellcheck disable=SC2329 # `eventually` calls it.
has() { # COUNT TEXT FILE: at least so many lines with it
    [ "$(grep -a -c -e "$2" "$3")" -ge "$1" ]
}

# --- Certificates ---------------------------------------------------------------------------------
# The key of the authority of certs/ has been thrown away, so those that are to be signed have another.
touch "$made/index.txt"
cat >"$made/ca.cnf" <<CNF
[req]
distinguished_name = name
prompt = no
[name]
[ca]
default_ca = these
[these]
database = $made/index.txt
new_certs_dir = $made
rand_serial = yes
unique_subject = no
default_md = sha256
default_days = 30
policy = any
[any]
commonName = supplied
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[client]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
[server]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
CNF

# NAME.pem and NAME.key; the common name is SUBJECT. ISSUER is a name, or that of itself.
sign() { # NAME SUBJECT KIND ISSUER [OPTION...]
    name=$1 subject=$2 kind=$3 issuer=$4
    shift 4
    self=
    [ "$name" != "$issuer" ] || self=-selfsign
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$made/$name.key" &&
        chmod 600 "$made/$name.key" &&
        openssl req -new -config "$made/ca.cnf" -key "$made/$name.key" -subj "/CN=$subject" \
            -out "$made/$name.csr" &&
        openssl ca -batch -notext -config "$made/ca.cnf" -extensions "$kind" $self \
            -cert "$made/$issuer.pem" -keyfile "$made/$issuer.key" \
            -in "$made/$name.csr" -out "$made/$name.pem" "$@" &&
        openssl x509 -in "$made/$name.pem" -noout
}
{
    sign authority 'Authority of clients' authority authority &&
        sign right gauge-7 client authority &&
        sign expired gauge-7 client authority -startdate 20240101000000Z -enddate 20240201000000Z &&
        sign purpose gauge-7 server authority &&
        sign other 'Another authority' authority other &&
        sign wrong gauge-7 client other &&
        sign self gauge-7 client self &&
        # The name of the right authority, and another key.
        sign namesake 'Authority of clients' authority namesake &&
        sign forged gauge-7 client namesake &&
        # A server's certificate that needs the one between.
        sign root 'Root of servers' authority root &&
        sign between 'Between' authority root &&
        sign leaf 'New leaf' server between &&
        cp "$trusted" "$made/ca.pem" &&
        cat "$made/leaf.pem" "$made/between.pem" >"$made/chain.pem" &&
        cat "$certs/wildcard.pem" "$certs/wildcard-pkcs1.key" >"$made/rooms.pem" &&
        chmod 600 "$made/rooms.pem"
} >"$made/made.log" 2>&1 || {
    echo "the certificates cannot be made:" >&2
    cat "$made/made.log" >&2
    exit 1
}

# --- openssl s_client -----------------------------------------------------------------------------
openssl_version=$(openssl version | cut -d ' ' -f 1,2)

upgrade() {
    printf 'GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n'
    printf 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'
    # A close frame; the server answers and ends the stream.
    printf '\210\200\000\000\000\000'
}

# What is said in both directions is in `log`: `>>>` before what the client says, `<<<` before what it hears.
# It runs where the certificates are, so that an argument may be a name.
s_client() { # ARGUMENT...
    next_log
    upgrade | (cd "$made" && exec timeout 20 openssl s_client -connect "127.0.0.1:$port" -ign_eof \
        -msg -CAfile ca.pem "$@") >"$log.raw" 2>&1
    status=$?
    LC_ALL=C tr -cd '\12\40-\176' <"$log.raw" | grep -v '^    ' >"$log"
    return $status
}
# Names its version, who it is and which host it asked for, and hears the end.
accepted() { # NAME GREETING ARGUMENT...
    name=$1 greeting=$2
    shift 2
    s_client -verify_return_error "$@" &&
        grep -q '^HTTP/1.1 101 ' "$log" && grep -q "$greeting" "$log" &&
        grep -q '^Verification: OK' "$log" &&
        grep -q '^<<< .* Alert .*, warning close_notify' "$log"
    verdict "$openssl_version: $name" $? "$log"
}
# The alert is one that the client has heard, and the first that there was.
refused() { # NAME ALERT ARGUMENT...
    name=$1 alert=$2
    shift 2
    s_client -servername localhost "$@"
    if grep -q 'no protocols available\|no ciphers available\|nknown option' "$log"; then
        skip "$openssl_version: $name" "it cannot say that, see $log"
        return
    fi
    ! grep -q '^HTTP/1.1 ' "$log" &&
        grep ' Alert .*, ' "$log" | head -n 1 | grep -qE "^<<< .*, fatal ($alert)\$"
    verdict "$openssl_version: $name: $alert" $? "$log"
}
# Which certificate is shown.
shown() { # SUBJECT ARGUMENT...
    subject=$1
    shift
    s_client "$@"
    grep -q "^subject=.*CN \{0,1\}= \{0,1\}$subject\(,.*\)\{0,1\}\$" "$log"
}
localhost="-servername localhost -verify_hostname localhost"
anonymous='with a client without a certificate, who asked for'
gauge='with CN=gauge-7, who asked for'

# --- curl -----------------------------------------------------------------------------------------
with_curl=true
if ! installed curl; then
    skip curl "not installed"
    with_curl=false
elif ! curl --version | grep -q OpenSSL; then
    # Why it is refused it says in the words of OpenSSL.
    skip curl "it has another TLS than OpenSSL"
    with_curl=false
fi
try_curl() { # ARGUMENT...
    curl --silent --show-error --include --verbose --http1.1 --max-time 20 --cacert "$trusted" \
        --resolve "localhost:$port:127.0.0.1" "$@" >"$log" 2>&1
}
curl_gets() { # NAME VERSION ARGUMENT...
    $with_curl || return
    name=$1 version=$2
    shift 2
    next_log
    try_curl "$@" "$https" && grep -q "SSL connection using TLSv$version " "$log" &&
        grep -q '^HTTP/1.1 426 ' "$log"
    verdict "curl: $name" $? "$log"
}
curl_refused() { # NAME ALERT ARGUMENT...
    $with_curl || return
    name=$1 alert=$2
    shift 2
    next_log
    try_curl "$@" "$https"
    status=$?
    if grep -q 'no protocols available' "$log"; then
        skip "curl: $name" "it cannot say that, see $log"
        return
    fi
    # 35: in the handshake; 56: after its own end of it, as in TLS 1.3.
    { [ $status -eq 35 ] || [ $status -eq 56 ]; } && ! grep -q '^HTTP/1.1 ' "$log" &&
        grep -q "^curl: .*SSL routines:.* alert $alert" "$log"
    verdict "curl: $name: $alert" $? "$log"
}
# Nobody speaks after the greeting, so curl is ended when it is there.
curl_upgrades() { # NAME GREETING ARGUMENT...
    $with_curl || return
    name=$1 greeting=$2
    shift 2
    next_log
    curl --silent --show-error --include --no-buffer --http1.1 --max-time 20 --cacert "$trusted" \
        --resolve "localhost:$port:127.0.0.1" \
        --header 'Connection: Upgrade' --header 'Upgrade: websocket' \
        --header 'Sec-WebSocket-Version: 13' \
        --header 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' "$@" >"$log" 2>&1 &
    client_pid=$!
    eventually has 1 "$greeting" "$log"
    kill "$client_pid" 2>/dev/null
    wait "$client_pid" 2>/dev/null
    client_pid=
    grep -q '^HTTP/1.1 101 ' "$log" && grep -q "$greeting" "$log" &&
        grep -q '^Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=' "$log"
    verdict "curl: $name" $? "$log"
}
# --- Python and Node ------------------------------------------------------------------------------
clients=
! find_websockets || clients="$clients python"
if find_ws; then
    clients="$clients ws"
    node_version=$(node --version)
    flag=
    if [ "$(node -p 'typeof WebSocket' 2>/dev/null)" != function ]; then
        flag=--experimental-websocket
    fi
    if [ "$(node ${flag:+"$flag"} -p 'typeof WebSocket' 2>/dev/null)" = function ]; then
        clients="$clients built-in"
    else
        skip "WebSocket of Node $node_version" "it has none"
    fi
fi

called() { # CLIENT
    case $1 in
    python) echo "Python websockets $websockets_version" ;;
    ws) echo "npm ws $ws_version" ;;
    built-in) echo "WebSocket of Node $node_version" ;;
    esac
}
# What each client that is installed says of `greeted TEXT` or `refused ALERT`.
all() { # NAME VERSION OUTCOME EXPECTED [IDENTITY]
    for client in $clients; do
        next_log
        case $client in
        python)
            timeout 60 "$python" "$here/websockets_tls.py" "$url" "$trusted" "$2" "--$3" "$4" \
                ${5:+--identity "$made/$5.pem" "$made/$5.key"} >"$log" 2>&1
            ;;
        ws)
            timeout 60 node "$here/ws_tls.cjs" "$ws" "$url" "$trusted" "$2" "$3" "$4" \
                ${5:+"$made/$5.pem" "$made/$5.key"} >"$log" 2>&1
            ;;
        built-in)
            # It takes no certificate.
            [ -z "${5:-}" ] || continue
            NODE_EXTRA_CA_CERTS=$trusted timeout 60 node ${flag:+"$flag"} "$here/ws_tls.cjs" built-in \
                "$url" "$trusted" "$2" "$3" "$4" >"$log" 2>&1
            ;;
        esac
        status=$?
        if [ $status -eq 77 ]; then
            skip "$(called "$client"): $1" "$(cat "$log")"
        else
            verdict "$(called "$client"): $1" $status "$log"
        fi
    done
}

# --- Versions, names, the chain -------------------------------------------------------------------
start --host "*.rooms.example=$made/rooms.pem"
# shellcheck disable=SC2086 # They are words.
for version in 1.3 1.2; do
    option=-tls${version%.*}_${version#*.}
    accepted "TLS $version" "TLS $version $anonymous localhost" $option $localhost
    accepted "TLS $version without a name" "TLS $version $anonymous no host name" $option \
        -noservername
    accepted "TLS $version for chat.rooms.example" "TLS $version $anonymous chat.rooms.example" \
        $option -servername chat.rooms.example -verify_hostname chat.rooms.example

    s_client $option $localhost -sess_out "session.$version" &&
        grep -q "^New, TLSv$version, " "$log" &&
        s_client $option $localhost -sess_in "session.$version" &&
        grep -q "^Reused, TLSv$version, " "$log" &&
        grep -q "TLS $version $anonymous localhost" "$log"
    verdict "$openssl_version: TLS $version, a session resumed" $? "$log"

    curl_gets "TLS $version" $version --tlsv$version --tls-max $version
    curl_upgrades "TLS $version, a handshake gets its 101" "TLS $version $anonymous localhost" \
        --tlsv$version --tls-max $version "$https"
    all "TLS $version" $version greeted "TLS $version $anonymous localhost"
done

shown localhost -servername elsewhere.example
verdict "$openssl_version: another name is shown the default certificate" $? "$log"
shown '\*\.rooms\.example' -servername CHAT.Rooms.Example
verdict "$openssl_version: case does not matter in a name" $? "$log"
shown localhost -servername a.b.rooms.example
verdict "$openssl_version: an asterisk stands for one label" $? "$log"

! s_client -verify_return_error -CAfile other.pem &&
    grep -q '^>>> .* Alert .*, fatal unknown_ca' "$log" &&
    eventually has 1 "the client does not trust the server's certificate" "$work/server.log"
verdict "$openssl_version: with another authority it refuses, and the log says so" $? "$log"

if $with_curl; then
    next_log
    try_curl --cacert "$made/other.pem" "$https"
    [ $? -eq 60 ]
    verdict "curl: with another authority it refuses" $? "$log"

    next_log
    try_curl "http://localhost:$port/"
    grep -q '^HTTP/1.1 400 ' "$log" && grep -q 'this port speaks TLS only' "$log"
    verdict "curl: a request without TLS is told that it needs it" $? "$log"
fi

# RFC 5246 appendix E.1, and RFC 8996 section 5: they get a protocol_version.
old='DEFAULT@SECLEVEL=0'
refused "TLS 1.1" protocol_version -tls1_1 -cipher "$old"
refused "TLS 1.0" protocol_version -tls1 -cipher "$old"
curl_refused "TLS 1.1" "protocol version" --tlsv1.1 --tls-max 1.1 --ciphers "$old"
all "TLS 1.1: protocol version" 1.1 refused "protocol version"
refused "TLS 1.2 with nothing but CBC" handshake_failure -tls1_2 -cipher ECDHE-ECDSA-AES128-SHA
refused "TLS 1.3 with a cipher that is not there" handshake_failure -tls1_3 \
    -ciphersuites TLS_AES_128_CCM_SHA256
stop

# --- A minimum ------------------------------------------------------------------------------------
start --min 1.3
# shellcheck disable=SC2086 # They are words.
accepted "--min 1.3: TLS 1.3" "TLS 1.3 $anonymous localhost" -tls1_3 $localhost
# shellcheck disable=SC2086 # They are words.
accepted "--min 1.3: with what both have" "TLS 1.3 $anonymous localhost" $localhost
refused "--min 1.3: TLS 1.2" protocol_version -tls1_2
refused "--min 1.3: TLS 1.1" protocol_version -tls1_1 -cipher "$old"
curl_gets "--min 1.3: TLS 1.3" 1.3
curl_refused "--min 1.3: TLS 1.2" "protocol version" --tls-max 1.2
all "--min 1.3: TLS 1.3" 1.3 greeted "TLS 1.3 $anonymous localhost"
all "--min 1.3: TLS 1.2: protocol version" 1.2 refused "protocol version"
stop

# --- Client certificates --------------------------------------------------------------------------
identity() { # NAME
    echo "-cert $1.pem -key $1.key"
}
# shellcheck disable=SC2046,SC2086 # They are words.
no_good() { # NAME: all wrong certificates, where one is asked for
    for version in 1.3 1.2; do
        option=-tls${version%.*}_${version#*.}
        refused "$1: TLS $version, of another authority" unknown_ca $option $(identity wrong)
        refused "$1: TLS $version, signed by itself" unknown_ca $option $(identity self)
        # Two alerts are for a signature that is not right, and rustls and OpenSSL take the second.
        refused "$1: TLS $version, of a namesake of the authority" \
            'bad_certificate|decrypt_error' $option $(identity forged)
        refused "$1: TLS $version, expired" certificate_expired $option $(identity expired)
        refused "$1: TLS $version, for servers" unsupported_certificate $option $(identity purpose)
        curl_refused "$1: TLS $version, of another authority" "unknown ca" \
            --tlsv$version --tls-max $version --cert "$made/wrong.pem" --key "$made/wrong.key"
        all "$1: TLS $version, of another authority: unknown ca" $version refused "unknown ca" wrong
        all "$1: TLS $version, expired: certificate expired" $version \
            refused "certificate expired" expired
    done
}
# shellcheck disable=SC2046,SC2086 # They are words.
good() { # NAME
    for version in 1.3 1.2; do
        option=-tls${version%.*}_${version#*.}
        accepted "$1: TLS $version, the right one" "TLS $version $gauge localhost" $option \
            $localhost $(identity right)
        curl_gets "$1: TLS $version, the right one" $version --tlsv$version --tls-max $version \
            --cert "$made/right.pem" --key "$made/right.key"
        curl_upgrades "$1: TLS $version, the right one, gets its 101" \
            "TLS $version $gauge localhost" --tlsv$version --tls-max $version \
            --cert "$made/right.pem" --key "$made/right.key" "$https"
        all "$1: TLS $version, the right one" $version greeted "TLS $version $gauge localhost" right

        # There is nothing to come again with: the certificate is looked at each time.
        rm -f "session.$version"
        s_client $option $localhost $(identity right) -sess_out "session.$version" &&
            { [ ! -s "session.$version" ] || again="-sess_in session.$version"; } &&
            s_client $option $localhost $(identity right) ${again-} &&
            grep -q "^New, TLSv$version, " "$log" &&
            grep -q "TLS $version $gauge localhost" "$log"
        verdict "$openssl_version: $1: TLS $version, whoever comes again shows it again" $? "$log"
        unset again
    done
}

start --client-ca "$made/authority.pem"
good required
# RFC 5246 section 7.4.6, RFC 8446 section 6.2.
refused "required: TLS 1.3, none" certificate_required -tls1_3
refused "required: TLS 1.2, none" handshake_failure -tls1_2
curl_refused "required: TLS 1.3, none" "certificate required" --tlsv1.3
curl_refused "required: TLS 1.2, none" "handshake failure" --tls-max 1.2
all "required: TLS 1.3, none: certificate required" 1.3 refused "certificate required"
all "required: TLS 1.2, none: handshake failure" 1.2 refused "handshake failure"
no_good required
stop

start --client-ca-optional "$made/authority.pem"
good optional
# shellcheck disable=SC2086 # They are words.
for version in 1.3 1.2; do
    accepted "optional: TLS $version, none" "TLS $version $anonymous localhost" \
        -tls${version%.*}_${version#*.} $localhost
    curl_gets "optional: TLS $version, none" $version --tlsv$version --tls-max $version
    all "optional: TLS $version, none" $version greeted "TLS $version $anonymous localhost"
done
no_good optional
stop

# --- One port for both ----------------------------------------------------------------------------
start --plain
# shellcheck disable=SC2086 # They are words.
accepted "one port for both: TLS" "TLS 1.3 $anonymous localhost" $localhost
curl_upgrades "one port for both: https" "TLS 1.3 $anonymous localhost" "$https"
curl_upgrades "one port for both: http" "without TLS" "http://localhost:$port/"
if $with_curl; then
    next_log
    try_curl "http://localhost:$port/"
    grep -q '^HTTP/1.1 426 ' "$log"
    verdict "curl: one port for both: a plain request without TLS" $? "$log"
fi
all "one port for both: wss" 1.3 greeted "TLS 1.3 $anonymous localhost"
url=ws${url#wss}
all "one port for both: ws" plain greeted "without TLS"
stop

# --- New certificates -----------------------------------------------------------------------------
reloaded='certificates and keys have been read again'
kept='the certificates that were in use stay in use'

# A Python session that is there before, and says more when it is told to.
hold() {
    held=
    case $clients in
    *python*) ;;
    *) return ;;
    esac
    next_log
    held=$log
    rm -f "$work/hold"
    mkfifo "$work/hold" || exit 1
    "$python" "$here/websockets_tls.py" "$url" "$trusted" 1.3 --hold \
        --greeted "TLS 1.3 $anonymous localhost" <"$work/hold" >"$held" 2>&1 &
    client_pid=$!
    exec 3>"$work/hold"
    eventually has 1 '^open$' "$held"
}
release() { # NAME
    [ -n "$held" ] || return
    # It may have gone.
    (trap '' PIPE && echo go >&3) 2>/dev/null
    exec 3>&-
    # It ends by itself: each of its waits is 20 s at most.
    wait "$client_pid" 2>/dev/null
    status=$?
    client_pid=
    verdict "Python websockets $websockets_version: $1" $status "$held"
}
# The files that the server has been told to read.
install_pair() { # CERTIFICATE KEY
    cp "$1" "$made/live.pem" && cp "$2" "$made/live.key" && chmod 600 "$made/live.key"
}
hang_up() { # COUNT TEXT: until the log has said it so often
    kill -HUP "$server_pid" && eventually has "$1" "$2" "$work/server.log"
}

install_pair "$certs/server.pem" "$certs/server.key"
start --cert "$made/live.pem" --key "$made/live.key"
hold
# shellcheck disable=SC2086 # They are words.
s_client -tls1_3 $localhost -sess_out session.old && s_client -tls1_3 $localhost -sess_in session.old &&
    grep -q '^Reused, TLSv1.3, ' "$log"
verdict "$openssl_version: SIGHUP: a session of before, resumed before" $? "$log"
shown localhost
verdict "$openssl_version: SIGHUP: the old certificate before" $? "$log"
install_pair "$made/chain.pem" "$made/leaf.key"
shown localhost
verdict "$openssl_version: SIGHUP: the old certificate as long as nobody says anything" $? "$log"
hang_up 1 "$reloaded" && shown 'New leaf'
verdict "$openssl_version: SIGHUP: the new certificate" $? "$log"
# shellcheck disable=SC2086 # They are words.
accepted "SIGHUP: by way of the certificate between" "TLS 1.3 $anonymous localhost" \
    -CAfile root.pem $localhost
# shellcheck disable=SC2086 # They are words.
s_client -tls1_3 $localhost -CAfile root.pem -sess_in session.old
grep -q '^New, TLSv1.3, ' "$log" && grep -q "TLS 1.3 $anonymous localhost" "$log"
verdict "$openssl_version: SIGHUP: a session of before makes a full handshake after" $? "$log"

echo 'no key' >"$made/live.key"
hang_up 1 "$kept" && shown 'New leaf'
verdict "$openssl_version: SIGHUP: a broken key leaves the last good pair" $? "$log"
install_pair "$certs/server.pem" "$made/leaf.key"
hang_up 2 "$kept" && shown 'New leaf'
verdict "$openssl_version: SIGHUP: so does a key of another certificate" $? "$log"
rm "$made/live.pem"
hang_up 3 "$kept" && shown 'New leaf'
verdict "$openssl_version: SIGHUP: so does a file that is gone" $? "$log"
install_pair "$certs/server.pem" "$certs/server.key"
hang_up 2 "$reloaded" && shown localhost
verdict "$openssl_version: SIGHUP: then a good pair is used" $? "$log"
release "SIGHUP: a session that was open goes on"
stop

# As Kubernetes replaces a secret: the files are links into a directory behind a link, which changes.
secret=$made/secret
mkdir -p "$secret"
put() { # VERSION CERTIFICATE KEY
    mkdir "$secret/..$1" && cp "$2" "$secret/..$1/tls.crt" && cp "$3" "$secret/..$1/tls.key" &&
        chmod 600 "$secret/..$1/tls.key" && ln -s "..$1" "$secret/..data_tmp" &&
        mv -T "$secret/..data_tmp" "$secret/..data"
}
put 1 "$certs/server.pem" "$certs/server.key"
ln -s ..data/tls.crt "$secret/tls.crt"
ln -s ..data/tls.key "$secret/tls.key"
start --cert "$secret/tls.crt" --key "$secret/tls.key" --watch 1
hold
shown localhost
verdict "$openssl_version: watch: the old certificate before" $? "$log"
put 2 "$made/chain.pem" "$made/leaf.key"
eventually has 1 "$reloaded" "$work/server.log" && shown 'New leaf'
verdict "$openssl_version: watch: a directory that is replaced behind a link" $? "$log"
put 3 "$made/made.log" "$certs/server.key"
eventually has 1 "$kept" "$work/server.log" && shown 'New leaf'
verdict "$openssl_version: watch: a broken file leaves the last good pair" $? "$log"
put 4 "$certs/server.pem" "$certs/server.key"
eventually has 2 "$reloaded" "$work/server.log" && shown localhost
verdict "$openssl_version: watch: then a good pair is used" $? "$log"
release "watch: a session that was open goes on"
stop
exit "$failed"
