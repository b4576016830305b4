// The npm package `ws` against an echo server: node ws_client.cjs PATH/TO/ws URL [--deflate | --deflate-dedicated]
// With a flag the server must agree on permessage-deflate, without it it must not.
'use strict';

const [, , path, url, flag] = process.argv;
const WebSocket = require(path);
const { once } = require('node:events');
const assert = require('node:assert/strict');

async function echo(socket, data, options = {}) {
    const answer = once(socket, 'message');
    socket.send(data, options);
    const [received, isBinary] = await answer;
    assert.equal(isBinary, typeof data !== 'string');
    assert.ok(Buffer.from(received).equals(Buffer.from(data)), 'what comes back is what was sent');
}

async function main() {
    for (const perMessageDeflate of [true, false]) {
        const socket = new WebSocket(url, { perMessageDeflate });
        const upgraded = once(socket, 'upgrade');
        await once(socket, 'open');
        const [{ headers }] = await upgraded;
        const answer = headers['sec-websocket-extensions'] || '';
        const expected = perMessageDeflate && flag !== undefined;
        assert.equal(answer.startsWith('permessage-deflate'), expected, answer);
        assert.equal(socket.extensions, expected ? 'permessage-deflate' : '');
        for (const text of ['', 'hello', 'grüße, 世界 👋', 'x'.repeat(100_000)]) {
            await echo(socket, text);
        }
        for (const size of [0, 1, 125, 126, 65_535, 65_536, 5_000_000]) {
            await echo(socket, Buffer.alloc(size, 7));
        }
        const line = (n) => `{"id":${n},"name":"Grüße, 世界"}\n`;
        const text = Array.from({ length: 40_000 }, (_, n) => line(n)).join('');
        assert.ok(Buffer.byteLength(text) > 1 << 20);
        await echo(socket, text);
        const whole = once(socket, 'message');
        socket.send('a fragmented ', { fin: false });
        socket.send('text', { fin: true });
        assert.equal(String((await whole)[0]), 'a fragmented text');
        const pong = once(socket, 'pong');
        socket.ping('are you there');
        assert.equal(String((await pong)[0]), 'are you there');
        const closed = once(socket, 'close');
        socket.close(4321, 'enough');
        assert.equal((await closed)[0], 4321);
        console.log(`ok: ${perMessageDeflate ? 'with' : 'without'} an offer of compression, answered '${answer}'`);
    }
    // It tells what it was refused with.
    const refused = new WebSocket(url, { protocolVersion: 8 });
    const [, response] = await once(refused, 'unexpected-response');
    assert.equal(response.statusCode, 426);
    assert.equal(response.headers['sec-websocket-version'], '13');
    response.resume();
    console.log('ok: another version is refused');
}

main().then(
    () => process.exit(0),
    (error) => {
        console.error(error);
        process.exit(1);
    },
);
