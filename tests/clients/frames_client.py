"""Length-prefixed frames with what Python has: frames_client.py HOST:PORT, of an echo server."""

import os
import socket
import struct
import sys


def check(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")
    print(f"ok: {what}")


def send(stream, payload):
    stream.sendall(struct.pack(">I", len(payload)) + payload)


def receive(reader):
    header = reader.read(4)
    if not header:
        return None
    (length,) = struct.unpack(">I", header)
    return reader.read(length)


def connect():
    stream = socket.create_connection((host, int(port)), timeout=20)
    return stream, stream.makefile("rb")


host, port = sys.argv[1].rsplit(":", 1)

stream, reader = connect()
for size in [0, 1, 125, 126, 65_535, 65_536, 5_000_000]:
    data = os.urandom(size)
    send(stream, data)
    check(receive(reader) == data, f"{size} bytes come back")
# Byte by byte, and many at once.
for byte in struct.pack(">I", 5) + b"hello":
    stream.sendall(bytes([byte]))
check(receive(reader) == b"hello", "a frame in nine pieces")
stream.sendall(b"".join(struct.pack(">II", 4, n) for n in range(1000)))
check([receive(reader) for _ in range(1000)] == [struct.pack(">I", n) for n in range(1000)], "order")
send(stream, b"the last one")
stream.shutdown(socket.SHUT_WR)
check(receive(reader) == b"the last one", "the answer to what was sent before the end")
check(receive(reader) is None, "the server ends its stream, too")

stream, reader = connect()
send(stream, b"hello")
stream.sendall(b"\xff\xff\xff\xff")
check(receive(reader) == b"hello", "what came before a frame that is too long")
check(receive(reader) is None, "and the end behind it")
