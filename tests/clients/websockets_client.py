"""The Python package `websockets` against an echo server: websockets_client.py URL [--deflate | --deflate-dedicated]

With a flag the server must agree on permessage-deflate, without it it must not.
"""

import os
import sys

from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect


def check(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")
    print(f"ok: {what}")


url = sys.argv[1]
deflate = len(sys.argv) > 2


def agreed(socket):
    """What the server has answered to the offer of compression."""
    return socket.response.headers.get("Sec-WebSocket-Extensions", "")

# It offers permessage-deflate, in its own words, and must be able to live with the answer.
with connect(url, max_size=None) as socket:
    check(agreed(socket).startswith("permessage-deflate") == deflate, f"agreed: {agreed(socket)!r}")
    check(bool(socket.protocol.extensions) == deflate, f"in use: {socket.protocol.extensions}")
    for text in ["", "hello", "grüße, 世界 👋", "x" * 100_000]:
        socket.send(text)
        check(socket.recv(timeout=20) == text, f"text of {len(text)} characters comes back")
    for size in [0, 1, 125, 126, 65_535, 65_536, 5_000_000]:
        data = bytes(i % 251 for i in range(size))
        socket.send(data)
        check(socket.recv(timeout=20) == data, f"binary of {size} bytes comes back")
    socket.send(["a fragmented ", "text ", "", "comes back whole"])
    check(socket.recv(timeout=20) == "a fragmented text comes back whole", "fragments")
    check(socket.ping("are you there").wait(timeout=20), "a ping is answered")
    line = '{"id":%d,"name":"Grüße, 世界 👋"}\n'
    text = "".join(line % n for n in range(40_000)).encode()[: 1 << 20].decode(errors="ignore")
    check(len(text.encode()) > (1 << 20) - 4, "a MiB of text")
    socket.send(text)
    check(socket.recv(timeout=20) == text, "and it comes back")
    noise = os.urandom(1 << 20)
    socket.send(noise)
    check(socket.recv(timeout=20) == noise, "a MiB of noise comes back")
    # Ten messages under way at once, in order.
    for n in range(10):
        socket.send(str(n))
    check([socket.recv(timeout=20) for _ in range(10)] == list("0123456789"), "order")
    socket.close(4321, "enough")
    check(socket.close_code == 4321, "the close code is echoed")
    try:
        socket.recv(timeout=20)
        check(False, "nothing comes after the close")
    except ConnectionClosedOK:
        check(False, "4321 is not taken for a normal end")
    except Exception as error:
        check(error.rcvd.code == 4321, "the close frame of the server was received")

with connect(url, compression=None) as socket:
    check(agreed(socket) == "", "nothing is agreed on that was not offered")
    socket.send(b"without extensions")
    check(socket.recv(timeout=20) == b"without extensions", "without extensions")
check(socket.close_code == 1000, "a normal end is 1000")
