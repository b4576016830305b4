"""A page in headless Chromium against an echo server: browser.py BROWSER PROFILE URL [--deflate | --deflate-dedicated]

Serves the page from a port of its own, so that it has an origin as in real life, and waits for
what the page reports. With a flag the server must agree on permessage-deflate, without it it
must not.
"""

import http.server
import json
import os
import queue
import subprocess
import sys
import threading

browser, profile, url = sys.argv[1:4]
extension = "permessage-deflate" if len(sys.argv) > 4 else ""
reports = queue.Queue()

PAGE = """<!doctype html><meta charset="utf-8"><title>echo</title><script>
const steps = [];
function check(condition, what) {
    if (!condition) throw new Error(what);
    steps.push(what);
}
function next(target, type) {
    return new Promise((resolve, reject) => {
        target.addEventListener(type, resolve, { once: true });
        if (type !== 'close') {
            target.addEventListener('close', (e) => reject(new Error('closed ' + e.code)), { once: true });
        }
    });
}
async function echo(socket, data) {
    const answer = next(socket, 'message');
    socket.send(data);
    return (await answer).data;
}
async function run() {
    const socket = new WebSocket(URL_OF_SERVER);
    socket.binaryType = 'arraybuffer';
    await next(socket, 'open');
    check(socket.protocol === '', 'no subprotocol');
    check(socket.extensions.split(';')[0] === EXTENSION, 'extensions: "' + socket.extensions + '"');
    const line = (n) => '{"id":' + n + ',"name":"Grüße, 世界"}\\n';
    const long = Array.from({ length: 40000 }, (_, n) => line(n)).join('');
    check(long.length > 1 << 20 && await echo(socket, long) === long, 'a MiB of text comes back');
    for (const text of ['', 'hello', 'grüße, 世界 👋', 'x'.repeat(100000)]) {
        check(await echo(socket, text) === text, 'text of ' + text.length + ' comes back');
    }
    for (const size of [0, 1, 125, 126, 65535, 65536, 5000000]) {
        const sent = new Uint8Array(size).map((_, i) => i % 251);
        const received = new Uint8Array(await echo(socket, sent));
        check(received.length === size && received.every((byte, i) => byte === sent[i]),
            'binary of ' + size + ' comes back');
    }
    const closed = next(socket, 'close');
    socket.close(4321, 'enough');
    const event = await closed;
    check(event.wasClean && event.code === 4321, 'clean close, ' + event.code);
    // A tab that is closed: no close frame is awaited by anybody.
    const other = new WebSocket(URL_OF_SERVER);
    await next(other, 'open');
    check(await echo(other, 'second') === 'second', 'a second connection');
}
run().then(() => ({ steps }), (error) => ({ steps, error: String(error) })).then((report) =>
    fetch('/report', { method: 'POST', body: JSON.stringify(report) }));
</script>"""


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = PAGE.replace("URL_OF_SERVER", json.dumps(url))
        body = body.replace("EXTENSION", json.dumps(extension)).encode()
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [
        browser,
        "--headless",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        f"--user-data-dir={profile}",
        f"http://127.0.0.1:{server.server_port}/",
    ]
    if os.geteuid() == 0:
        # Chromium's sandbox does not work for root, as in most containers.
        command.insert(1, "--no-sandbox")
    # It has something to say about every missing bus; only the page's report counts.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        report = reports.get(timeout=90)
    except queue.Empty:
        report = {"steps": [], "error": "the page has not reported"}
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
    server.shutdown()

for step in report["steps"]:
    print(f"ok: {step}")
if "error" in report:
    sys.exit(f"failed: {report['error']}")
