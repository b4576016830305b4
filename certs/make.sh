#!/usr/bin/env bash
# Makes all certificates and keys of this directory again. Needs `openssl` 1.1.1 or later; asks nothing.
#
# The key of the authority is thrown away: nobody can sign with it afterwards.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

touch "$work/index.txt"
cat >"$work/ca.cnf" <<CNF
[req]
distinguished_name = name
prompt = no
[name]
[ca]
default_ca = dev
[dev]
database = $work/index.txt
new_certs_dir = $work
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
[any]
commonName = supplied
organizationName = optional
[authority]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CNF

# new_key NAME ALGORITHM...: a key in PKCS#8.
new_key() {
    local name=$1
    shift
    openssl genpkey -quiet "$@" -out "$name" 2>/dev/null || openssl genpkey "$@" -out "$name" 2>/dev/null
    chmod 600 "$name"
}

# sign NAME KEY SUBJECT USAGE NAMES [FROM UNTIL]: a certificate for one purpose.
sign() {
    local name=$1 key=$2 subject=$3 usage=$4 names=$5 from=${6:-20250101000000Z} until=${7:-20450101000000Z}
    {
        echo 'basicConstraints = critical, CA:false'
        echo 'keyUsage = critical, digitalSignature'
        echo "extendedKeyUsage = $usage"
        echo 'subjectKeyIdentifier = hash'
        echo 'authorityKeyIdentifier = keyid'
        [ -z "$names" ] || echo "subjectAltName = $names"
    } >"$work/leaf.ext"
    openssl req -new -config "$work/ca.cnf" -key "$key" -subj "$subject" -out "$work/leaf.csr"
    openssl ca -batch -notext -config "$work/ca.cnf" -cert ca.pem -keyfile "$work/ca.key" \
        -in "$work/leaf.csr" -startdate "$from" -enddate "$until" -extfile "$work/leaf.ext" \
        -out "$name" 2>/dev/null
}

p256=(-algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:named_curve)

new_key "$work/ca.key" "${p256[@]}"
openssl req -new -config "$work/ca.cnf" -key "$work/ca.key" \
    -subj '/O=Coracle development, trust nowhere/CN=Coracle development CA' -out "$work/ca.csr"
openssl ca -batch -notext -config "$work/ca.cnf" -selfsign -extensions authority \
    -keyfile "$work/ca.key" -in "$work/ca.csr" -startdate 20250101000000Z -enddate 20450101000000Z \
    -out ca.pem 2>/dev/null

new_key server.key "${p256[@]}"
sign server.pem server.key '/O=Coracle development/CN=localhost' serverAuth \
    'DNS:localhost, IP:127.0.0.1, IP:::1'

# The same key, protected and in the older format.
openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in server.key \
    -passout pass:coracle -out server-protected.key
openssl pkey -in server.key -traditional -out server-sec1.key 2>/dev/null
chmod 600 server-protected.key server-sec1.key

new_key client.key "${p256[@]}"
sign client.pem client.key '/O=Coracle development/CN=gauge-7' clientAuth \
    'DNS:gauge-7.devices.example'

# For another name, RSA, the key in PKCS#1.
new_key "$work/rsa.key" -algorithm RSA -pkeyopt rsa_keygen_bits:2048
openssl pkey -in "$work/rsa.key" -traditional -out wildcard-pkcs1.key 2>/dev/null
chmod 600 wildcard-pkcs1.key
sign wildcard.pem wildcard-pkcs1.key '/O=Coracle development/CN=*.rooms.example' serverAuth \
    'DNS:*.rooms.example, DNS:rooms.example'

sign expired.pem server.key '/O=Coracle development/CN=localhost' serverAuth \
    'DNS:localhost, IP:127.0.0.1' 20240101000000Z 20240201000000Z

for name in server client wildcard expired; do
    openssl verify -no_check_time -CAfile ca.pem "$name.pem" >/dev/null
done
echo "made: $(ls ./*.pem ./*.key | tr '\n' ' ')"
