"""The Python package `websockets` against the wss example.

websockets_tls.py URL CA VERSION (--greeted TEXT | --refused ALERT) [--identity CERTIFICATE KEY] [--hold]

VERSION is the only one that is offered: 1.1, 1.2 or 1.3; `plain`: none. The server must greet with
TEXT, or refuse with the alert that OpenSSL calls ALERT ("unknown ca"). With --hold it says "open" and
goes on when something comes by standard input. Its status is 77 if this version cannot be offered.

Not by `websockets.sync`: that reads and writes one connection of OpenSSL in two threads, which OpenSSL does
not allow and Python does not prevent (python/cpython issue 143756). One request in a thousand never left.
"""

import argparse
import asyncio
import os
import ssl
import sys
import warnings

from websockets.asyncio.client import ClientConnection, connect

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


class Remembering(ClientConnection):
    """What goes wrong after the handshake (as a refusal does in TLS 1.3) `websockets` does not tell."""

    errors = []

    def connection_lost(self, exc):
        if exc is not None:
            self.errors.append(exc)
        super().connection_lost(exc)


def only(version):
    context = ssl.create_default_context(cafile=options.authority)
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
    return connect(
        options.url,
        ssl=context,
        server_hostname="localhost",
        open_timeout=20,
        max_size=None,
        create_connection=Remembering,
    )


async def received(socket):
    return await asyncio.wait_for(socket.recv(), 20)


def reason(error):
    """As the other clients say it: "tlsv1 alert unknown ca"."""
    return (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")


async def refused():
    try:
        async with opened() as socket:
            check(False, f"refused, and not greeted with {await received(socket)!r}")
    except Exception as error:
        said = [reason(error)] + [reason(error) for error in Remembering.errors]
    if any("no protocols available" in it for it in said):
        print(f"{ssl.OPENSSL_VERSION} does not offer TLS {options.version}")
        sys.exit(77)
    check(any(f"alert {options.refused}" in it for it in said), f"refused: {said}")


async def served():
    async with opened() as socket:
        greeting = await received(socket)
        check(greeting == options.greeted, f"greeted with {greeting!r}")
        if options.hold:
            print("open", flush=True)
            check(await asyncio.to_thread(sys.stdin.readline) != "", "told to go on")
        for text in ["", "hello", "grüße, 世界 👋", "x" * 100_000]:
            await socket.send(text)
            check(await received(socket) == text, f"text of {len(text)} characters comes back")
        noise = os.urandom(1 << 20)
        await socket.send(noise)
        check(await received(socket) == noise, "a MiB comes back")
    check(socket.close_code == 1000, f"a clean end: {socket.close_code}")


asyncio.run(refused() if options.refused else served())
