"""Three clients of one page in headless Chromium, through a proxy that cuts.

    coracle_browser.py SERVER BROWSER PROFILE MODULE

SERVER is the example `long_poll`: one room, in which everybody hears everything. One client has a WebSocket, one an
event stream, one polls; each of them says a third of MESSAGES. The proxy cuts off every third answer to a poll and to
a POST, and every stream after 500 messages. Each client has to hear all, once, in the same order.
"""

import asyncio
import itertools
import json
import os
import pathlib
import subprocess
import sys
from urllib.parse import urlsplit

server_path, browser, profile, module = sys.argv[1:5]
MESSAGES = 10_000
STREAMED = 500
PATIENCE = 180

SCRIPT = """
import { connect } from "/coracle.js";

const ways = ["websocket", "sse", "polling"];
const log = [];
const clients = ways.map((way) => {
    const it = { way, heard: [], used: new Set(), opens: 0 };
    it.client = connect("/ws", { transports: [way] });
    it.client.on("transport", (transport) => it.used.add(transport));
    it.client.on("open", () => { it.opens += 1; it.client.send(`here is ${way}`); });
    it.client.on("message", ({ data }) => { it.heard.push(data); });
    it.client.on("close", ({ code, reason }) => log.push(`${way} closed ${code} ${reason}`));
    it.client.on("error", (error) => log.push(String(error)));
    return it;
});
const until = async (holds) => {
    while (!holds()) await new Promise((done) => setTimeout(done, 10));
};
await until(() => clients.every(({ way, heard }) => heard.includes(`here is ${way}`)));
for (const it of clients) it.heard = it.heard.filter((data) => !data.startsWith("here is "));

// No further ahead than a slow one may be.
const slowest = () => Math.min(...clients.map(({ heard }) => heard.filter((data) => /^\\d/.test(data)).length));
for (let said = 0; said < MESSAGES; said += 100) {
    await until(() => slowest() > said - 400);
    for (let n = said; n < said + 100; n += 1) clients[n % 3].client.send(`${n}`);
}
const giveUp = performance.now() + 100_000;
await until(() => slowest() >= MESSAGES || performance.now() > giveUp);
// What came twice would come now.
await new Promise((done) => setTimeout(done, 1000));
const numbers = clients.map(({ heard }) => heard.filter((data) => /^\\d/.test(data)));
const report = JSON.stringify({
    log,
    counts: numbers.map((it) => it.length),
    same: numbers.every((it) => it.join() === numbers[0].join()),
    inOrder: [0, 1, 2].every((who) => numbers[0].map(Number).filter((n) => n % 3 === who)
        .every((n, at) => n === at * 3 + who)),
    opens: clients.map(({ opens }) => opens),
    used: clients.map(({ used }) => [...used]),
});
for (const { client } of clients) client.close();
await fetch("/report", { method: "POST", body: report });
""".replace("MESSAGES", str(MESSAGES))

PAGES = {
    "/": ("text/html", '<!doctype html><meta charset="utf-8"><script type="module" src="/script.js"></script>'),
    "/script.js": ("text/javascript", SCRIPT),
    "/coracle.js": ("text/javascript", pathlib.Path(module).read_text()),
}
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'"


class Proxy:
    def __init__(self, upstream):
        self.upstream = upstream
        self.reported = asyncio.get_running_loop().create_future()
        self.turns = {"poll": itertools.count(1), "send": itertools.count(1)}
        self.cut = {"poll": 0, "send": 0, "events": 0}
        self.passed = {"poll": 0, "send": 0, "events": 0}

    async def serve(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
            fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            await self.answer(urlsplit(target), head, fields, body, reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            # The client has gone, or all is over.
            pass
        finally:
            writer.close()

    async def answer(self, url, head, fields, body, reader, writer):
        if url.path in PAGES:
            kind, text = PAGES[url.path]
            text = text.encode()
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {len(text)}\r\n"
                         f"Content-Security-Policy: {POLICY}\r\nConnection: close\r\n\r\n".encode() + text)
            return await writer.drain()
        if url.path == "/report":
            self.reported.set_result(json.loads(body))
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            return await writer.drain()
        from_server, to_server = await asyncio.open_connection(*self.upstream)
        try:
            if fields.get("upgrade") == "websocket":
                to_server.write(head)
                await asyncio.gather(self.pipe(reader, to_server), self.pipe(from_server, writer))
                return
            # One request for each connection, so that an answer ends where the connection does.
            lines = [it for it in head.split(b"\r\n") if not it.lower().startswith(b"connection:")]
            to_server.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]) + body)
            verb = url.path.rsplit("/", 1)[-1]
            if verb == "events":
                return await self.stream(from_server, writer, reader)
            answer = await from_server.read(-1)
            if verb in self.turns and "session_id" in url.query:
                turn = next(self.turns[verb])
                if turn % 3 == 0:
                    self.cut[verb] += 1
                    start = answer.index(b"\r\n\r\n") + 4
                    # In the middle, or before its first byte.
                    writer.write(answer[:(start + len(answer)) // 2] if turn % 2 else b"")
                    await writer.drain()
                    return writer.transport.abort()
                self.passed[verb] += 1
            writer.write(answer)
            await writer.drain()
        finally:
            to_server.close()

    async def pipe(self, source, sink):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
        sink.close()

    async def stream(self, source, sink, client):
        gone = asyncio.ensure_future(client.read(1))
        streamed = 0
        while True:
            read = asyncio.ensure_future(source.read(4096))
            await asyncio.wait([read, gone], return_when=asyncio.FIRST_COMPLETED)
            if gone.done() or not (data := await read):
                read.cancel()
                gone.cancel()
                return
            sink.write(data)
            await sink.drain()
            streamed += data.count(b"id: ")
            self.passed["events"] += data.count(b"id: ")
            if streamed >= STREAMED:
                self.cut["events"] += 1
                gone.cancel()
                return sink.transport.abort()


def check(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")
    print(f"ok: {what}")


async def main():
    server = subprocess.Popen([server_path, "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    chromium = None
    try:
        line = server.stdout.readline()
        if not line.startswith("listening on http://"):
            sys.exit(f"failed: the server says {line!r}")
        url = urlsplit(line.removeprefix("listening on ").strip())
        proxy = Proxy((url.hostname, url.port))
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        command = [browser, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   f"--user-data-dir={profile}", f"http://127.0.0.1:{port}/"]
        if os.geteuid() == 0:
            # Chromium's sandbox does not work for root, as in most containers.
            command.insert(1, "--no-sandbox")
        chromium = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL)
        try:
            report = await asyncio.wait_for(proxy.reported, PATIENCE)
        except asyncio.TimeoutError:
            sys.exit(f"failed: the page has not reported; passed {proxy.passed}, cut {proxy.cut}")
        listener.close()
        return report, proxy
    finally:
        for process in filter(None, [chromium, server]):
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


report, proxy = asyncio.run(main())
print(f"passed {proxy.passed}, cut {proxy.cut}")
check(report["counts"] == [MESSAGES] * 3, f"each hears as many as were said: {report['counts']}")
check(report["inOrder"], "what one says is heard once and in order")
check(report["same"], "all three hear the same in the same order")
check(report["used"] == [["websocket"], ["polling", "sse"], ["polling"]], f"each by its way: {report['used']}")
check(report["opens"] == [1, 1, 1] and not report["log"], f"in one session each {report['log'] or ''}")
check(all(count > 10 for count in proxy.cut.values()), "and much was cut")
