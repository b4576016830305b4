// The npm package `ws`, or the WebSocket of Node itself, against the wss example:
//
//   node ws_tls.cjs (PATH/TO/ws | built-in) URL CA VERSION (greeted TEXT | refused ALERT) [CERTIFICATE KEY]
//
// VERSION is the only one that is offered: 1.1, 1.2 or 1.3; `plain`: none. The server must greet with TEXT,
// or refuse with the alert that OpenSSL calls ALERT ("unknown ca"). Node's own WebSocket takes its
// authority from the variable NODE_EXTRA_CA_CERTS, and no certificate. The status is 77 if this version
// cannot be offered.
'use strict';

const [, , path, url, authority, version, outcome, expected, certificate, key] = process.argv;
const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { readFileSync } = require('node:fs');
const tls = require('node:tls');

const ciphers = version === '1.1' ? 'DEFAULT@SECLEVEL=0' : tls.DEFAULT_CIPHERS;

// Node's own WebSocket tells nobody why TLS has failed, so its socket is listened to.
const overheard = [];
const { connect } = tls;
tls.connect = (...all) => connect(...all).on('error', (error) => overheard.push(reasons(error)));

function open() {
    if (version === 'plain') {
        return new (path === 'built-in' ? WebSocket : require(path))(url);
    }
    if (path === 'built-in') {
        // It takes no options for TLS, and goes by what is the default at the time.
        tls.DEFAULT_MIN_VERSION = tls.DEFAULT_MAX_VERSION = `TLSv${version}`;
        tls.DEFAULT_CIPHERS = ciphers;
        return new WebSocket(url.replace('127.0.0.1', 'localhost'));
    }
    return new (require(path))(url, {
        ca: readFileSync(authority),
        servername: 'localhost',
        minVersion: `TLSv${version}`,
        maxVersion: `TLSv${version}`,
        ciphers,
        ...(certificate && { cert: readFileSync(certificate), key: readFileSync(key) }),
    });
}

// Everything that an error says of itself and of what caused it.
function reasons(error) {
    const said = [];
    for (; error; error = error.cause || error.error) {
        said.push(error.reason || error.message || String(error));
    }
    return said.join(': ');
}

// The messages in their order, and the end.
function listen(socket) {
    const messages = [];
    let waiting = [];
    let end = null;
    const settle = () => {
        while (waiting.length > 0 && (messages.length > 0 || end)) {
            const { resolve, reject } = waiting.shift();
            messages.length > 0 ? resolve(messages.shift()) : reject(end);
        }
    };
    socket.binaryType = 'arraybuffer';
    socket.addEventListener('message', ({ data }) => { messages.push(data); settle(); });
    socket.addEventListener('error', (event) => { end = end || event.error || event; settle(); });
    const closed = new Promise((resolve) => {
        socket.addEventListener('close', (event) => {
            end = end || new Error(`closed with ${event.code}`);
            settle();
            resolve(event);
        });
    });
    const next = () => new Promise((resolve, reject) => { waiting.push({ resolve, reject }); settle(); });
    return { next, closed };
}

async function main() {
    const socket = open();
    const { next, closed } = listen(socket);
    if (outcome === 'refused') {
        const failed = (error) => [...overheard, reasons(error)].join(': ');
        const said = await next().then((greeting) => `greeted with ${greeting}`, failed);
        if (/no protocols available/i.test(said)) {
            console.log(`OpenSSL ${process.versions.openssl} does not offer TLS ${version}`);
            return 77;
        }
        assert.ok(said.toLowerCase().includes(`alert ${expected}`), said);
        console.log(`ok: refused: ${said}`);
        return 0;
    }
    assert.equal(await next(), expected);
    for (const text of ['', 'hello', 'grüße, 世界 👋', 'x'.repeat(100_000)]) {
        socket.send(text);
        assert.equal(await next(), text);
    }
    const noise = crypto.randomBytes(1 << 20);
    socket.send(noise);
    assert.ok(Buffer.from(await next()).equals(noise), 'a MiB comes back');
    socket.close(1000);
    const { code, wasClean } = await closed;
    assert.deepEqual({ code, wasClean }, { code: 1000, wasClean: true });
    console.log(`ok: ${expected}`);
    return 0;
}

main().then(
    (status) => process.exit(status),
    (error) => {
        console.error(error);
        process.exit(1);
    },
);
