"""An echo server by the Python package `websockets`: websockets_server.py [CERTIFICATE KEY]

It prints its URL. It pings often and compresses if it is asked to; "bye" makes it close with 1001, and "large" brings a
message in fragments.
"""

import asyncio
import ssl
import sys

from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        if message == "bye":
            await socket.close(1001, "as you wish")
        elif message == "large":
            await socket.send(["in ", "three ", "fragments"])
        else:
            await socket.send(message)


async def main():
    tls = None
    if len(sys.argv) > 2:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(sys.argv[1], sys.argv[2])
    async with serve(echo, "127.0.0.1", 0, ssl=tls, ping_interval=0.05, ping_timeout=20) as server:
        port = server.sockets[0].getsockname()[1]
        host, scheme = ("localhost", "wss") if tls else ("127.0.0.1", "ws")
        print(f"listening on {scheme}://{host}:{port}/", flush=True)
        await server.serve_forever()


asyncio.run(main())
