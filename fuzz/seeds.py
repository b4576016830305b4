#!/usr/bin/env python3
"""Writes the seed corpora: fuzz/seeds/<target>/<name>, from the examples in the tests.

    fuzz/seeds.py

The layout of an input is in the head of each target, the layout of a script in src/stream.rs. Run it
after changing one, and commit what it writes.
"""

import pathlib
import zlib

ROOT = pathlib.Path(__file__).parent / "seeds"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TEXT, BINARY, LAST, CLOSE, PING, PONG = 0x81, 0x82, 0x80, 0x88, 0x89, 0x8A
TEXT_BEGINS, BINARY_BEGINS, MORE, RSV1 = 0x01, 0x02, 0x00, 0x40
NO_MASK, MASK = bytes(4), b"\x37\xfa\x21\x3d"


def seed(target, name, data):
    directory = ROOT / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


def u16(number):
    return number.to_bytes(2, "big")


def frame(first, payload=b"", mask=NO_MASK):
    """One masked frame, its length in the fewest bytes. A mask of zeros leaves the text readable,
    to a fuzzer as well."""
    if len(payload) < 126:
        length = bytes([0x80 | len(payload)])
    elif len(payload) < 65536:
        length = b"\xfe" + u16(len(payload))
    else:
        length = b"\xff" + len(payload).to_bytes(8, "big")
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes([first]) + length + mask + masked


def compressed(payload, level=6, bits=15, dictionary=None):
    more = {} if dictionary is None else {"zdict": dictionary}
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits, **more)
    out = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return out.removesuffix(b"\0\0\xff\xff")


# Heads.

def request(*headers, line="GET /chat?room=1 HTTP/1.1"):
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1")


def handshake(*more):
    return request(
        "Host: server.example.com", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", *more,
    )


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"

HEADS = {
    "handshake": handshake(),
    "browser": request(
        "Host: 127.0.0.1:9001", "Connection: keep-alive, Upgrade", "Pragma: no-cache",
        "Cache-Control: no-cache", "User-Agent: Mozilla/5.0 (X11; Linux x86_64)",
        "Upgrade: websocket", "Origin: http://127.0.0.1:9001", "Sec-WebSocket-Version: 13",
        "Accept-Encoding: gzip, deflate, br, zstd", f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    ),
    "protocols": handshake("Sec-WebSocket-Protocol: chat, superchat", "Origin: http://server.example.com"),
    "protocol-twice": handshake("Sec-WebSocket-Protocol: chat", "sec-websocket-protocol: chat"),
    "foreign-origin": handshake("Origin: https://elsewhere.example:8443"),
    "null-origin": handshake("Origin: null"),
    "deflate": handshake(DEFLATE),
    "deflate-windows": handshake(
        f"{DEFLATE}; server_max_window_bits=10; client_max_window_bits=11",
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover",
    ),
    "deflate-quoted": handshake(
        'Sec-WebSocket-Extensions: foo; a="b\\"", permessage-deflate; server_max_window_bits="8"'
    ),
    "ipv6-host": request(
        "Host: [::1]:9001", "Upgrade: websocket, h2c/1", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", line="GET / HTTP/1.1",
    ),
    "get": request("Host: a", line="GET / HTTP/1.1"),
    "head": request("Host: a", line="HEAD / HTTP/1.1"),
    "post": request("Host: a", "Content-Length: 5", line="POST / HTTP/1.1") + b"hello",
    "chunked": request("Host: a", "Transfer-Encoding: chunked", line="POST / HTTP/1.1"),
    "both-lengths": request("Host: a", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "version-8": handshake().replace(b": 13", b": 8"),
    "no-version": handshake().replace(b"Sec-WebSocket-Version: 13\r\n", b""),
    "bad-key": handshake().replace(b"==", b"=A"),
    "no-host": handshake().replace(b"Host: ", b"X: "),
    "two-hosts": handshake("Host: b"),
    "http-1.0": request("Host: a", line="GET / HTTP/1.0"),
    "absolute": request("Host: a", line="GET http://a/ HTTP/1.1"),
    "star": request("Host: a", line="OPTIONS * HTTP/1.1"),
    "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "folded": b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    "bare-lf": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare-cr": b"GET / HTTP/1.1\r\nHost: a\r\r\n",
    "space-before-colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "nul": b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
    "latin-1": request("Host: a", "X: caf\xe9\ta"),
    "many-headers": request("Host: a", *["a: b"] * 70),
    "frames-behind": handshake() + frame(TEXT, b"early"),
    "unfinished": handshake()[:-2],
}

for number, (name, head) in enumerate(HEADS.items()):
    # Every kind of settings, cut at every kind of place.
    seed("head", name, bytes([number % 8]) + u16([20, 256, 1000, 7][number % 4]) + head)
seed("head", "too-long", b"\x80\x00\x10" + handshake("X: " + "x" * 300))

# Streams, frame by frame.

STREAMS = {
    # RFC 6455 section 5.7.
    "rfc": frame(TEXT, b"Hello", MASK) + frame(PING, b"Hello", MASK),
    "rfc-fragments": frame(TEXT_BEGINS, b"Hel", MASK) + frame(LAST, b"lo", MASK),
    "every-length": b"".join(frame(BINARY, b"x" * n) for n in (0, 1, 125, 126, 127, 300)),
    "long": frame(BINARY, b"y" * 5000),
    "control-between": frame(TEXT_BEGINS, b"a\xe2\x82") + frame(PING, b"p" * 125)
    + frame(MORE) + frame(PONG) + frame(LAST, b"\xac"),
    "characters": frame(TEXT, "aé€𝄞\u07ff\u0800\ud7ff\ue000\uffff\U0010ffff\0z".encode()),
    "surrogate": frame(TEXT, b"\xed\xa0\x80"),
    "overlong": frame(TEXT_BEGINS, b"\xe0") + frame(LAST, b"\x80\x80"),
    "unfinished-character": frame(TEXT, b"text \xf0\x9d\x84"),
    "close": frame(CLOSE, u16(1000) + "grüße".encode()) + frame(TEXT, b"late"),
    "close-nothing": frame(CLOSE),
    "close-half": frame(CLOSE, b"\x03"),
    "close-1005": frame(CLOSE, u16(1005)),
    "close-1014": frame(CLOSE, u16(1014)),
    "close-4999": frame(TEXT, b"bye") + frame(CLOSE, u16(4999) + b"x" * 123),
    "close-reason": frame(CLOSE, u16(1000) + b"\xe2\x82"),
    "reserved-bit": frame(TEXT | 0x20, b"a"),
    "reserved-opcode": frame(0x83, b"a"),
    "rsv1": frame(TEXT | RSV1, b"a"),
    "not-masked": b"\x81\x05Hello",
    "long-ping": frame(PING, b"x" * 126),
    "fragmented-ping": frame(PING & 0x7F, b"x"),
    "continuation-of-nothing": frame(LAST, b"x"),
    "message-in-message": frame(TEXT_BEGINS, b"a") + frame(TEXT, b"b"),
    "not-minimal-16": b"\x82\xfe\x00\x05" + NO_MASK + b"Hello",
    "not-minimal-64": b"\x82\xff" + (5).to_bytes(8, "big") + NO_MASK + b"Hello",
    "top-bit": b"\x82\xff" + b"\x80" + bytes(7) + NO_MASK,
    "4-gib-and-5": b"\x81\xff" + (2**32 + 5).to_bytes(8, "big") + NO_MASK + b"Hello",
    "too-big": frame(BINARY_BEGINS, b"x" * 60) + frame(LAST, b"x" * 5000),
    "many-fragments": frame(BINARY_BEGINS) + frame(MORE, b"x") * 20 + frame(LAST),
    "cut-header": frame(TEXT, b"whole") + b"\x81\xfe\x01",
    "cut-payload": frame(TEXT, b"half of it")[:-5],
}

HELLO = compressed(b"Hello")
DEFLATED = {
    "compressed": frame(TEXT | RSV1, HELLO) * 2,
    # RFC 7692 section 7.2.3.
    "takeover": frame(TEXT | RSV1, HELLO) + frame(TEXT | RSV1, b"\xf2\x00\x11\x00\x00"),
    "stored": frame(TEXT | RSV1, b"\x00\x05\x00\xfa\xffHello\x00"),
    "final": frame(BINARY | RSV1, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"),
    "two-blocks": frame(TEXT | RSV1, b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"),
    "compressed-fragments": frame(TEXT_BEGINS | RSV1, HELLO[:3]) + frame(PING)
    + frame(LAST, HELLO[3:]),
    "bomb": frame(BINARY | RSV1, compressed(bytes(100_000), 9)),
    "compressed-empty": frame(TEXT | RSV1, b"\x00") + frame(TEXT | RSV1),
    "garbage": frame(BINARY | RSV1, b"\xff" * 20),
    "not-utf8": frame(TEXT | RSV1, compressed(b"\xff\xfe")),
    # What has crashed once: the end of a stream, and then an empty frame as the end of its message.
    "compressed-final-empty": frame(TEXT_BEGINS | RSV1, b"\xf3\x48\xcd\xc9\xc9\x07\x00") + frame(LAST)
    + frame(TEXT | RSV1, HELLO),
    "rsv1-continuation": frame(TEXT_BEGINS | RSV1, HELLO[:3]) + frame(LAST | RSV1, HELLO[3:]),
}

# Scripts.

SCRIPTS = {
    "s-text": bytes([TEXT, 5]) + b"Hello" + bytes([BINARY, 0]),
    "s-fragments": bytes([TEXT_BEGINS, 2]) + b"a\xc3" + bytes([PING, 1]) + b"p" + bytes([LAST, 1, 0xA9]),
    "s-repeated": bytes([BINARY, 0xC0]) + u16(4990) + b"x" + bytes([TEXT, 0xC0]) + u16(126) + b"y",
    "s-claims": bytes([BINARY, 0xD0]) + (2**63 - 1).to_bytes(8, "big") + b"xx",
    "s-16-bits": bytes([BINARY, 0xD8, 130]) + b"z" * 130 + bytes([BINARY, 0xD8, 1]) + b"z",
    "s-close": bytes([TEXT, 1]) + b"a" + bytes([CLOSE, 0xE0]) + u16(1001) + bytes([3]) + b"bye"
    + bytes([TEXT, 1]) + b"b",
    "s-not-masked": bytes([TEXT, 0xE8, 1]) + b"a",
    "s-as-it-is": bytes([0, 0xF0, 7]) + frame(TEXT, b"x"),
    "s-compressed": bytes([TEXT, 0xF8, 10, 20]) + b"what what " + bytes([TEXT, 0xF8, 10, 20])
    + b"what what " + bytes([BINARY, 1]) + b"x",
    # A full message, and then fragment by fragment what a compressed one may have on top.
    "s-compressed-on-top": bytes([BINARY_BEGINS | RSV1, 0xC0]) + u16(5000) + b"x"
    + (bytes([MORE, 0xC0]) + u16(64) + b"y") * 200,
    "s-compressed-fragments": bytes([TEXT, 0xFC, 3, 10, 20]) + b"what what "
    + bytes([BINARY, 0xFD, 0, 5, 3]) + b"abcab",
}


def settings_of(name, number):
    """Limits in turn; deflate of all kinds where it matters."""
    deflate = 1 + number % 3 if name in DEFLATED or "compressed" in name else number % 2
    script = 1 if name in SCRIPTS else 0
    if name == "s-compressed-on-top":
        return script, 1, 3
    if name == "compressed-final-empty":
        return script, 2, 0
    return script, deflate, number % 4


for number, (name, stream) in enumerate({**STREAMS, **DEFLATED, **SCRIPTS}.items()):
    script, deflate, limits = settings_of(name, number)
    cuts = u16([3, 256 + number, 512 + number, 10][number % 4])
    seed("codec", name, bytes([script | deflate << 1 | limits << 3]) + cuts + stream)
    if name not in DEFLATED:
        seed("differential", name, bytes([script | limits << 1]) + stream)
    # The server's compression and the client's offer, where it matters.
    mode = number % 3 if deflate == 0 else 1 + number % 2
    offer = 2 if deflate else 0
    seed("session", name, bytes([4 | script | offer | mode << 4, number]) + stream)

for name in ["handshake", "protocols", "deflate", "get", "head", "post", "tls", "bare-lf",
             "frames-behind", "unfinished", "many-headers", "folded"]:
    seed("session", "head-" + name, b"\x10\x40" + HEADS[name])

# permessage-deflate alone.

OFFERS = {
    "plain": "permessage-deflate",
    "client-window": "permessage-deflate; client_max_window_bits",
    "client-window-8": "permessage-deflate; client_max_window_bits=8",
    "server-window": "permessage-deflate; server_max_window_bits=10",
    "server-window-8": "permessage-deflate; server_max_window_bits=8, permessage-deflate",
    "no-takeover": "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "twice": "permessage-deflate; client_max_window_bits; client_max_window_bits",
    "unknown": "permessage-deflate; unknown=1, x-webkit-deflate-frame",
    "quoted": 'permessage-deflate; client_max_window_bits="1\\2"',
    "leading-zero": "permessage-deflate; server_max_window_bits=010",
    "empty-elements": ",, permessage-deflate ,\t,",
    "broken": "permessage-deflate; =10",
}
for number, (name, offer) in enumerate(OFFERS.items()):
    seed("deflate", "offer-" + name, bytes([0, number, number, number + 2]) + offer.encode())


def lengthened(*messages):
    return b"".join(bytes([len(message)]) + message for message in messages)


WIRE = {
    "hello": lengthened(HELLO, HELLO),
    "takeover": lengthened(HELLO, b"\xf2\x00\x11\x00\x00"),
    "stored": lengthened(b"\x00\x05\x00\xfa\xffHello\x00"),
    "final-and-next": lengthened(b"\xf3\x48\xcd\xc9\xc9\x07\x00" + HELLO, HELLO),
    "two-blocks": lengthened(b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"),
    "empty": lengthened(b"\x00", b""),
    "bomb": lengthened(compressed(bytes(200_000), 9)[:255]),
    "dynamic": lengthened(compressed(b"the quick brown fox jumps over the lazy dog, " * 3 + bytes(range(90)))[:255]),
    "garbage": lengthened(b"\xff" * 20),
}
for number, (name, wire) in enumerate(WIRE.items()):
    for takeover in (0, 1):
        limit = [3, 4, 5][number % 3]
        seed("deflate", f"wire-{name}-{takeover}", bytes([1, takeover | number % 8 << 1, limit]) + wire)

MESSAGES = b"".join(bytes([len(m), n]) + m for m, n in [
    (b"what is said twice ", 20), (b"what is said twice ", 20), (b"", 1), (b"x", 1),
    (bytes(range(256))[:255], 3), (b"\0", 255),
])
for takeover in (0, 1):
    for bits, level in [(0, 1), (6, 6), (6, 0), (2, 9)]:
        seed("deflate", f"trip-{takeover}-{bits}-{level}", bytes([2, takeover, bits, level]) + MESSAGES)

# Length-prefixed frames.

def prefixed(*payloads):
    return b"".join(len(it).to_bytes(4, "big") + it for it in payloads)


PREFIXED = {
    "hello": prefixed(b"hello"),
    "empty": prefixed(b"", b"", b"x", b""),
    "half": prefixed(b"hello")[:7],
    "half-header": prefixed(b"hello") + b"\0\0",
    "4-gib": prefixed(b"hello") + b"\xff\xff\xff\xff" + b"x" * 50,
    "one-too-many": prefixed(bytes(100), bytes(101), b"never seen"),
    "request": request(),
}
for number, (name, stream) in enumerate(PREFIXED.items()):
    for limits in range(4):
        seed("prefixed", f"{name}-{limits}", bytes([limits << 1]) + u16([3, 300 + number][limits & 1]) + stream)
seed("prefixed", "lengths", b"\1" + u16(700) + b"".join(map(u16, [0, 1, 16_384, 16_385, 65_535, 5, 65_535])))

# What proxies send.

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def proxy_v2(command, family, rest):
    return SIGNATURE + bytes([command, family]) + u16(len(rest)) + rest


PORTS = u16(4711) + u16(443)
V4 = bytes([203, 0, 113, 9, 192, 0, 2, 1]) + PORTS
V6 = bytes.fromhex("20010db8" + "00" * 11 + "07") * 2 + PORTS

PROXY = {
    "v1-tcp4": b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\nGET / HTTP/1.1\r\n",
    "v1-tcp6": b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n",
    "v1-unknown": b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    "v1-long": b"PROXY UNKNOWN " + b"x" * 100,
    "v2-tcp4": proxy_v2(0x21, 0x11, V4) + b"GET / HTTP/1.1\r\n",
    "v2-tlv": proxy_v2(0x21, 0x12, V4 + b"\xe0\0\x02hi"),
    "v2-tcp6": proxy_v2(0x21, 0x21, V6),
    "v2-unix": proxy_v2(0x21, 0x31, bytes(216)),
    "v2-local": proxy_v2(0x20, 0x00, b""),
    "v2-unspecified": proxy_v2(0x21, 0x00, b""),
    "v2-huge": SIGNATURE + b"\x21\x11\xff\xff",
    "x-forwarded-for": b"1.1.1.1, 10.0.0.2\r\n[2001:db8::7]:80, unknown, ::1",
    "forwarded": b'for=1.1.1.1;proto=https, For="[2001:db8::7]:4711"\r\nby=10.0.0.1;for=_x',
    "forwarded-open": b'for="1.1.1.1, for=10.0.0.2',
    "forwarded-escape": b'for="\\"1.1.1.1\\", ";host="a,b;c"',
}
for name, data in PROXY.items():
    seed("proxy", name, data)

# Chunked bodies, each in three cuts.

CHUNKED = {
    "plain": b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
    "extended": b"00A;name=\"a value\";x\r\n0123456789\r\n0;last\r\nX-A: b\r\nX-C:\t d\r\n\r\n",
    "bare-lf": b"5\nhello\n0\n\n",
    "sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "wrapped": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "huge": b"ffffffffffffffff\r\nhello",
    "long": b"5\r\nhello!\r\n0\r\n\r\n",
    "folded": b"0\r\nX: a\r\n b\r\n\r\n",
}
for name, data in CHUNKED.items():
    for cut, sent in ("", u16(0)), ("-split", u16(7)), ("-pieces", u16(1000)):
        seed("chunked", name + cut, sent + data)

if __name__ == "__main__":
    for directory in sorted(ROOT.iterdir()):
        files = list(directory.iterdir())
        print(f"{directory.name}: {len(files)} seeds, {sum(f.stat().st_size for f in files)} bytes")
