"""The Python package `websockets` against the wss example.

websockets_tls.py URL CA VERSION (--greeted TEXT | --refused ALERT) [--identity CERTIFICATE KEY] [--hold]

VERSION is the only one that is offered: 1.1, 1.2 or 1.3; `plain`: none. The server must greet with
TEXT, or refuse with the alert that OpenSSL calls ALERT ("unknown ca"). With --hold it says "open" and
goes on when something comes by standard input. Its status is 77 if this version cannot be offered.
"""

import argparse
import os
import ssl
import sys
import warnings

from websockets.sync.client import connect

arguments = argparse.ArgumentParser()
arguments.add_argument("url")
arguments.add_argument("authority")
arguments.add_argument("version", choices=["plain", "1.1", "1.2", "1.3"])
arguments.add_argument("--greeted")
arguments.add_argument("--refused")
arguments.add_argument("--identity", nargs=2)
arguments.add_argument("--hold", action="store_true")
options = arguments.parse_args()


def check(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")
    print(f"ok: {what}", flush=True)


class Remembering(ssl.SSLSocket):
    """What goes wrong after the handshake (as a refusal does in TLS 1.3) `websockets` does not tell."""

    errors = []

    def recv(self, *args):
        try:
            return super().recv(*args)
        except ssl.SSLError as error:
            self.errors.append(error)
            raise


def only(version):
    context = ssl.create_default_context(cafile=options.authority)
    context.sslsocket_class = Remembering
    if version == "1.1":
        context.set_ciphers("DEFAULT@SECLEVEL=0")
    wanted = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    # Python warns of the old one, and so it should.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # First the end that the other one would be on the wrong side of.
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = wanted
        context.minimum_version = wanted
    if options.identity:
        context.load_cert_chain(*options.identity)
    return context


def opened():
    if options.version == "plain":
        return connect(options.url, open_timeout=20)
    context = only(options.version)
    return connect(options.url, ssl=context, server_hostname="localhost", open_timeout=20)


def reason(error):
    """As the other clients say it: "tlsv1 alert unknown ca"."""
    return (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")


if options.refused:
    try:
        with opened() as socket:
            check(False, f"refused, and not greeted with {socket.recv(timeout=20)!r}")
    except Exception as error:
        said = [reason(error)] + [reason(error) for error in Remembering.errors]
    if any("no protocols available" in it for it in said):
        print(f"{ssl.OPENSSL_VERSION} does not offer TLS {options.version}")
        sys.exit(77)
    check(any(f"alert {options.refused}" in it for it in said), f"refused: {said}")
    sys.exit()

with opened() as socket:
    greeting = socket.recv(timeout=20)
    check(greeting == options.greeted, f"greeted with {greeting!r}")
    if options.hold:
        print("open", flush=True)
        check(sys.stdin.readline() != "", "told to go on")
    for text in ["", "hello", "grüße, 世界 👋", "x" * 100_000]:
        socket.send(text)
        check(socket.recv(timeout=20) == text, f"text of {len(text)} characters comes back")
    noise = os.urandom(1 << 20)
    socket.send(noise)
    check(socket.recv(timeout=20) == noise, "a MiB comes back")
check(socket.close_code == 1000, f"a clean end: {socket.close_code}")
