// assets/coracle.js in Node, against a server in this process and under a clock that does not wait:
// node --test coracle_test.mjs, with COPY the path of a copy of the module whose name ends in .mjs
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { Clock, FakeServer } from "./coracle_fake.mjs";

const { backoff, connect, waitFor } = await import(process.env.COPY);

let clock;
let server;
let clients;
let reported;
let hosts = 0;

beforeEach(() => {
    clock = new Clock();
    clock.install();
    server = new FakeServer();
    clients = [];
    reported = [];
    globalThis.reportError = (error) => reported.push(error.message);
});

afterEach(async () => {
    try {
        server.fault = () => undefined;
        for (const client of clients) client.close();
        await clock.settle();
        assert.equal(clock.pending, 0, "nothing is left that would run later");
    } finally {
        clock.remove();
    }
});

const host = () => `http://host-${hosts}.test`;

/** A client of a server that nobody has met yet, and what it hears. */
function open(options = {}, { path = "/ws", again = false } = {}) {
    if (!again) hosts += 1;
    const client = connect(`${host()}${path}`, { ...server.parts, ...options });
    clients.push(client);
    const seen = { messages: [], states: [], closes: [], transports: [], opens: [], events: [] };
    client.on("message", ({ data }) => seen.messages.push(data));
    client.on("state", (it) => seen.states.push(it));
    client.on("close", (it) => seen.closes.push(it));
    client.on("transport", (it) => seen.transports.push(it));
    client.on("open", (it) => seen.opens.push(it));
    for (const type of ["recovered", "lost"]) client.on(type, (it) => seen.events.push([type, it]));
    return [client, seen];
}

const isOpen = (client) => clock.until("the client is open", () => client.state === "open");
const only = () => [...server.sessions.values()].at(-1);
const polling = { transports: ["polling"] };

function numbered(count) {
    return Array.from({ length: count }, (_, n) => `message ${n}`);
}

/** The same numbers in every run. */
function dice(seed) {
    let state = seed;
    return () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return state / 2 ** 32;
    };
}

// --- Parts ---------------------------------------------------------------------------------------

test("a wait is any part of a time that doubles up to a cap", (t) => {
    const bounds = { base: 500, cap: 30_000 };
    const random = t.mock.method(Math, "random", () => 1);
    assert.deepEqual([0, 1, 2, 5, 6, 50, 5000].map((n) => backoff(n, bounds)),
        [500, 1000, 2000, 16_000, 30_000, 30_000, 30_000]);
    random.mock.mockImplementation(() => 0);
    assert.equal(backoff(9, bounds), 0);
});

test("a server that restarts or is overloaded is given time, and one that says how long is believed", (t) => {
    const bounds = { base: 500, cap: 30_000 };
    t.mock.method(Math, "random", () => 0.5);
    assert.equal(waitFor({ code: 1006 }, 0, bounds), 250);
    assert.equal(waitFor({ code: 1012 }, 0, bounds), 1000);
    assert.equal(waitFor({ code: 1013 }, 0, bounds), 4500);
    assert.equal(waitFor({ code: 1013, retryAfter: 60_000 }, 0, bounds), 60_500);
    assert.equal(waitFor({ code: 1006 }, 20, bounds), 15_000);
});

test("what cannot be meant is an error at once", () => {
    const errors = [
        [() => connect("/ws"), /URL/],
        [() => connect("ftp://host.test/"), /ftp: is no protocol/],
        [() => connect("ws://host.test/", { transport: "sse" }), /no option transport/],
        [() => open()[0].on("mesage", () => {}), /no event mesage/],
        [() => open()[0].send(7), /a message is/],
        [() => open()[0].close(1001), /1001/],
        [() => open()[0].emit("bigint", 7n), /BigInt/],
    ];
    for (const [act, message] of errors) assert.throws(act, message);
});

// --- WebSocket -----------------------------------------------------------------------------------

test("a client opens, sends what has waited in order, and receives", async () => {
    const [client, seen] = open({}, { path: "/chat?x=1#part" });
    client.on("open", () => client.send("hello"));
    for (const text of ["one", "two"]) assert.ok(client.send(text));
    assert.ok(client.send(new Uint8Array([0, 1, 255]).subarray(1)));
    assert.deepEqual([client.state, client.waiting, client.transport], ["connecting", 3, null]);
    await isOpen(client);
    assert.deepEqual(server.heard, ["hello", "one", "two", new Uint8Array([1, 255])]);
    assert.equal(server.sockets[0].url, `ws://host-${hosts}.test/chat?x=1`);
    only().send("text");
    only().send(new Uint8Array([1, 2, 3]).buffer);
    assert.deepEqual(seen.messages, ["text", new Uint8Array([1, 2, 3])]);
    assert.deepEqual([client.transport, seen.transports, client.waiting], ["websocket", ["websocket"], 0]);
    assert.deepEqual(seen.opens, [{ transport: "websocket", again: false }]);
    assert.deepEqual(server.requests, []);
});

test("bytes that wait are a copy", async () => {
    const [client] = open();
    const bytes = new Uint8Array([1, 2]);
    client.send(bytes);
    client.send(bytes.buffer);
    bytes.fill(9);
    await isOpen(client);
    assert.deepEqual(server.heard, [new Uint8Array([1, 2]), new Uint8Array([1, 2])]);
});

test("typed messages are told by their type, and what is none is a message all the same", async () => {
    const [client, seen] = open();
    const heard = [];
    client.onTyped("chat.message", (payload, { id, room }) => heard.push([payload.text, id, room]));
    const off = client.on("type:other", () => heard.push("other"));
    client.on("typed", ({ type }) => heard.push(type));
    await isOpen(client);
    client.emit("chat.message", { text: "hi" }, { room: "lobby", id: "a" });
    assert.equal(server.heard[0], '{"id":"a","room":"lobby","type":"chat.message","payload":{"text":"hi"}}');
    only().send('{"id":7,"room":"lobby","type":"chat.message","payload":{"text":"hello"}}');
    off();
    only().send('{"type":"other"}');
    const none = ["{", "[]", '{"type":7}', '"type"', "null", ""];
    for (const text of none) only().send(text);
    assert.deepEqual(heard, ["chat.message", ["hello", 7, "lobby"], "other"]);
    assert.deepEqual(seen.messages.slice(2), none);
});

test("a listener that throws harms nobody, and neither does one that closes the client", async () => {
    const [client, seen] = open();
    client.on("message", () => { throw new Error("mine"); });
    client.on("open", () => { throw new Error("mine, too"); });
    const after = [];
    client.on("message", ({ data }) => after.push(data));
    await isOpen(client);
    only().send("one");
    client.on("message", () => client.close());
    only().send("two");
    server.sockets[0].onmessage?.({ data: "three" });
    assert.deepEqual(after, ["one", "two"]);
    assert.deepEqual(seen.messages, ["one", "two"]);
    assert.deepEqual(reported, ["mine, too", "mine", "mine"]);
    assert.equal(client.state, "closed");
});

test("a queue that is full takes nothing more, and says so", async () => {
    server.webSocket = "hangs";
    const [client] = open({ transports: ["websocket"] });
    for (let n = 0; n < 1024; n += 1) assert.ok(client.send("x"));
    assert.equal(client.send("x"), false);
    const [large] = open({ transports: ["websocket"], queue: { bytes: 10 } });
    assert.ok(large.send("ñññññ"));
    assert.equal(large.send("x"), false);
    assert.equal(large.waiting, 1);
    large.close();
    assert.equal(large.send("x"), false);
});

test("a WebSocket that takes no more is given no more until it does", async () => {
    const [client] = open({ queue: { bytes: 100 } });
    await isOpen(client);
    server.sockets[0].bufferedAmount = 101;
    client.send("one");
    client.send("two");
    await clock.pass(1000);
    assert.deepEqual([server.heard, client.waiting], [[], 2]);
    server.sockets[0].bufferedAmount = 0;
    await clock.until("it goes on", () => server.heard.length === 2);
});

// --- Reconnecting --------------------------------------------------------------------------------

test("a lost connection comes back, and what was said meanwhile is sent then", async () => {
    const [client, seen] = open();
    await isOpen(client);
    only().abort();
    assert.equal(client.state, "waiting");
    client.send("meanwhile");
    await isOpen(client);
    assert.deepEqual(server.heard, ["meanwhile"]);
    assert.deepEqual(seen.states.map((it) => it.state), ["open", "waiting", "connecting", "open"]);
    assert.ok(seen.states[1].delay <= 500);
    assert.deepEqual(seen.closes, [{ code: 1006, reason: "", clean: false, willReconnect: true }]);
    assert.deepEqual(seen.opens.map((it) => it.again), [false, true]);
});

test("waits grow while it fails, and begin anew after a connection that has lasted", async (t) => {
    t.mock.method(Math, "random", () => 1);
    const [client, seen] = open({ transports: ["websocket"] });
    await isOpen(client);
    const delays = () => seen.states.filter((it) => it.state === "waiting").map((it) => it.delay);
    server.webSocket = "fails";
    only().abort();
    await clock.until("eight tries", () => delays().length === 8);
    assert.deepEqual(delays(), [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    // One that ends at once is no success.
    server.webSocket = "open";
    await isOpen(client);
    only().abort();
    assert.equal(delays().at(-1), 30_000);
    await isOpen(client);
    await clock.pass(5000);
    only().abort();
    assert.equal(delays().at(-1), 500);
});

test("a server that has said that it is over is not asked again", async () => {
    for (const [code, options, comes] of [
        [1000, {}, false],
        [1008, {}, false],
        [1001, {}, true],
        [1012, {}, true],
        [4001, {}, true],
        [4001, { final: (end) => end.code >= 4000 }, false],
        [1000, { final: [4001] }, true],
        [1011, { final: () => { throw new Error("in final"); } }, true],
    ]) {
        const [client, seen] = open(options);
        await isOpen(client);
        only().close(code, "because");
        assert.equal(client.state, comes ? "waiting" : "closed", `${code}`);
        assert.deepEqual(seen.closes, [{ code, reason: "because", clean: true, willReconnect: comes }]);
        if (!comes) assert.equal(client.send("x"), false);
        client.close();
    }
    assert.deepEqual(reported, ["in final"]);
});

test("reconnect does not wait, ends what there is, and opens what was closed", async () => {
    const [client, seen] = open();
    await isOpen(client);
    client.reconnect();
    assert.deepEqual([client.state, seen.closes.length], ["connecting", 1]);
    await isOpen(client);
    assert.equal(server.sockets[0].readyState, 3);
    server.webSocket = "fails";
    server.down = true;
    only().abort();
    server.webSocket = "open";
    server.down = false;
    const before = clock.now;
    client.reconnect();
    await isOpen(client);
    assert.equal(clock.now, before);
    client.close(4000, "bye");
    await clock.settle();
    assert.equal(client.state, "closed");
    assert.equal(client.waiting, 0);
    client.reconnect();
    await isOpen(client);
    assert.equal(seen.closes.at(-1).code, 4000);
    only().abort();
    client.send("for nobody");
    client.close();
    client.reconnect();
    await isOpen(client);
    assert.deepEqual(server.heard, []);
});

for (const event of ["state", "transport", "open"]) {
    test(`what waits is sent by a client that is closed in ${event}, and by no later one`, async () => {
        for (const options of [{}, polling]) {
            server.heard = [];
            const [client] = open(options);
            client.join("a");
            for (const text of ["one", "two"]) client.send(text);
            const off = client.on(event, () => {
                if (client.state !== "open") return;
                client.send("hello");
                client.close();
            });
            await clock.until("the close", () => client.state === "closed");
            assert.equal(client.waiting, 0);
            await clock.until("the server has heard of it", () => !server.sessions.size);
            assert.deepEqual(server.heard, ["hello", "one", "two"]);
            off();
            client.leave("a");
            client.reconnect();
            await isOpen(client);
            await clock.pass(1000);
            assert.deepEqual(server.heard, ["hello", "one", "two"]);
            client.close();
            await clock.until("the end", () => !server.sessions.size);
        }
    });
}

test("the network's return and a look at the page hurry the next try, but not against the server", async (t) => {
    t.mock.method(Math, "random", () => 1);
    const window = new EventTarget();
    const document = new EventTarget();
    document.visibilityState = "visible";
    globalThis.addEventListener = window.addEventListener.bind(window);
    globalThis.removeEventListener = window.removeEventListener.bind(window);
    globalThis.document = document;
    try {
        const [client] = open({ backoff: { base: 30_000 } });
        for (const [target, type] of [[window, "online"], [document, "visibilitychange"], [window, "pageshow"]]) {
            await isOpen(client);
            only().abort();
            await clock.pass(1500);
            assert.equal(client.state, "waiting");
            target.dispatchEvent(new Event(type));
            assert.equal(client.state, "connecting", type);
        }
        await isOpen(client);
        server.webSocket = "fails";
        server.fault = () => ({ status: 503, headers: { "Retry-After": "120" }, body: '{"error":"full"}' });
        const [other, seen] = open(polling);
        await clock.until("refused", () => other.state === "waiting");
        assert.deepEqual([seen.states.at(-1).delay >= 120_000, seen.states.at(-1).end.reason], [true, "full"]);
        await clock.pass(2000);
        window.dispatchEvent(new Event("online"));
        assert.equal(other.state, "waiting");
        for (const it of clients) it.close();
    } finally {
        delete globalThis.addEventListener;
        delete globalThis.removeEventListener;
        delete globalThis.document;
    }
});

// --- Falling back --------------------------------------------------------------------------------

for (const [how, takes] of [["throws", 0], ["fails", 0], ["hangs", 5000]]) {
    test(`where WebSocket ${how} there is a stream, and nobody waits for it twice`, async () => {
        server.webSocket = how;
        const [client, seen] = open({}, { path: "/r/lobby?x=y z" });
        const before = clock.now;
        await clock.until("a stream", () => client.transport === "sse");
        assert.equal(clock.now - before, takes);
        assert.deepEqual(seen.transports, ["polling", "sse"]);
        assert.equal(only().path, "/r/lobby?x=y%20z");
        only().send("down");
        client.send("up");
        await clock.until("both ways", () => seen.messages.length && server.heard.length);
        const tried = server.sockets.length;
        // Neither by this client when it comes back, nor by another one of the page.
        only().close(1001, "restart");
        const [other] = open({}, { again: true });
        const again = clock.now;
        await clock.until("both again", () => client.transport === "sse" && other.transport === "sse");
        assert.ok(clock.now - again < 2000);
        assert.equal(server.sockets.length, tried);
        // From time to time it is.
        await clock.pass(300_000);
        server.webSocket = "open";
        for (const session of [...server.sessions.values()]) session.close(1001, "");
        await clock.until("WebSocket", () => client.transport === "websocket" && other.transport === "websocket");
    });
}

test("what was in the way of WebSocket may be gone when there is no way at all", async () => {
    server.webSocket = "fails";
    const [client] = open();
    await isOpen(client);
    server.webSocket = "open";
    server.fault = () => ({ status: 502 });
    only().close(1001, "");
    await clock.until("WebSocket", () => client.transport === "websocket", 60_000);
});

test("a restart of the server is not taken for a blockade", async () => {
    const [client, seen] = open();
    await isOpen(client);
    server.webSocket = "fails";
    only().abort();
    await clock.until("three tries", () => seen.states.filter((it) => it.state === "waiting").length === 3);
    assert.deepEqual(server.requests, []);
    server.webSocket = "open";
    await clock.until("WebSocket", () => client.transport === "websocket");
    server.webSocket = "fails";
    only().abort();
    await clock.until("a fallback in the end", () => client.transport === "sse");
});

test("without a WebSocket class, and without an EventSource class, it polls", async () => {
    const [client, seen] = open({ WebSocket: undefined, EventSource: undefined });
    await isOpen(client);
    only().send("hello");
    await clock.until("the message", () => seen.messages.length === 1);
    assert.deepEqual([client.transport, seen.transports], ["polling", ["polling"]]);
});

test("a fallback that refuses says why, and 403 is final", async () => {
    server.webSocket = "fails";
    for (const [status, code, state] of [[403, 1008, "closed"], [401, 1008, "closed"], [404, 1006, "waiting"],
        [503, 1013, "waiting"], [500, 1006, "waiting"]]) {
        server.fault = () => ({ status, body: '{"error":"not you"}' });
        const [client, seen] = open();
        await clock.until("refused", () => client.state === state);
        const { end } = seen.states.at(-1);
        assert.deepEqual([end.code, end.status, end.reason], [code, status, "not you"]);
    }
    server.fault = () => ({ status: 200, body: "<html>log in first</html>" });
    const [client, seen] = open();
    await clock.until("refused", () => client.state === "waiting");
    assert.match(seen.states.at(-1).end.reason, /no coracle/);
});

// --- A session by HTTP ---------------------------------------------------------------------------

test("a stream that is held back is left for polls, with nothing lost or doubled", async () => {
    server.streams = "held";
    server.onSession = (session) => numbered(50).forEach((text) => session.send(text));
    const [client, seen] = open({ transports: ["sse", "polling"] });
    const before = clock.now;
    await clock.until("all", () => seen.messages.length >= 50);
    assert.equal(clock.now - before, 3000);
    assert.equal(client.transport, "polling");
    only().send("last");
    await clock.until("the last", () => seen.messages.at(-1) === "last");
    assert.deepEqual(seen.messages, [...numbered(50), "last"]);
    assert.equal(server.count("events"), 1);
});

test("what comes again has been had", async () => {
    server.overlap = 7;
    const [client, seen] = open({ transports: ["sse", "polling"] });
    await clock.until("a stream", () => client.transport === "sse");
    const texts = numbered(100);
    for (const [n, text] of texts.entries()) {
        only().send(text);
        if (n === 50) server.streams = "fails";
        if (n % 10 === 9) {
            only().stream.drop();
            await clock.pass(100);
        }
    }
    await clock.until("all", () => seen.messages.length >= 100);
    assert.deepEqual([seen.messages, client.transport], [texts, "polling"]);
});

test("a number that does not follow is not taken, but asked for again", async () => {
    const [client, seen] = open({ transports: ["sse", "polling"] });
    await clock.until("a stream", () => client.transport === "sse");
    only().send("one");
    only().stream.emit("message", "three", 3);
    only().send("two");
    await clock.until("two", () => seen.messages.length === 2);
    assert.deepEqual(seen.messages, ["one", "two"]);
    // In a poll there is nothing to ask for.
    const [other, heard] = open(polling);
    await isOpen(other);
    server.fault = (verb, { session_id: id }) => (verb === "poll" && id
        ? { status: 200, body: '["five"]', headers: { "Coracle-Cursor": "5" } } : undefined);
    only().send("one");
    await clock.until("a new session", () => heard.closes.length);
    assert.deepEqual([heard.messages, heard.closes[0].reason], [["one"], "the server has left messages out"]);
});

test("a stream that breaks goes on where it was, and polls take over where none comes about", async () => {
    const [client, seen] = open({ transports: ["sse", "polling"] });
    await clock.until("a stream", () => client.transport === "sse");
    const texts = numbered(300);
    for (const [n, text] of texts.entries()) {
        only().send(text);
        if (n % 50 === 49) only().stream.drop();
        if (n === 149) server.streams = "fails";
        if (n === 249) server.streams = "open";
        if (n % 50 === 49) await clock.pass(100);
    }
    await clock.until("all", () => seen.messages.length >= 300);
    assert.deepEqual(seen.messages, texts);
    await clock.until("a stream again", () => client.transport === "sse", 15_000);
    assert.deepEqual(seen.opens.length, 1);
});

test("texts of all kinds and bytes arrive as they were, by stream, by poll and by POST", async () => {
    const kinds = ["", " ", "a\nb", "a\r\nb\r", "\n", '{"type":"x","payload":1e400}', '{"$binary":"AAAA"}', "[]",
        "null", "\u0000\u2028\u{1f6f6}", "data: x\n\nid: 9", new Uint8Array([]),
        Uint8Array.from({ length: 20_000 }, (_, n) => n % 256)];
    for (const transports of [["sse"], ["polling"]]) {
        server.heard = [];
        const [client, seen] = open({ transports });
        await clock.until("it is there", () => client.transport === transports[0]);
        for (const data of kinds) only().send(data);
        await clock.until("all down", () => seen.messages.length >= kinds.length);
        assert.deepEqual(seen.messages, kinds);
        // The first alone, the others together.
        for (const data of kinds) client.send(data);
        await clock.until("all up", () => server.heard.length >= kinds.length);
        assert.deepEqual(server.heard, kinds);
        server.heard = [];
        for (const data of kinds) {
            client.send(data);
            await clock.until("one by one", () => server.heard.length);
            assert.deepEqual(server.heard.pop(), data);
        }
        client.send("half a character: \ud800");
        client.send("\udc00");
        client.send("x");
        await clock.until("replaced", () => server.heard.length === 3);
        assert.deepEqual(server.heard.slice(1), ["\ufffd", "x"]);
        client.close();
    }
});

test("one POST is on its way, and what is said meanwhile goes together in the next", async () => {
    const [client] = open(polling);
    await isOpen(client);
    for (const text of numbered(250)) client.send(text);
    await clock.until("all", () => server.heard.length >= 250);
    assert.deepEqual(server.heard, numbered(250));
    const posts = server.requests.filter(([verb]) => verb === "send");
    assert.deepEqual(posts.map(([, { seq }]) => seq), ["1", "2", "3", "4"]);
    assert.equal(posts[0][2].headers["Content-Type"], "text/plain;charset=utf-8");
    assert.deepEqual(posts.slice(1).map(([, , { body }]) => JSON.parse(body).length), [100, 100, 49]);
    client.send("x".repeat(40_000));
    client.send("y".repeat(40_000));
    client.send("z".repeat(40_000));
    await clock.until("large ones", () => server.heard.length >= 253);
    assert.equal(server.count("send"), 7);
});

test("a POST that is answered by nobody is repeated, and taken once", async () => {
    const faults = { 1: "silent", 2: "lost", 3: "cut", 5: { status: 503 }, 6: { status: 502 } };
    server.fault = (verb, _, count) => (verb === "send" ? faults[count] : undefined);
    const [client] = open(polling);
    await isOpen(client);
    client.send("one");
    client.send("two");
    await clock.until("both", () => server.heard.length === 2 && client.waiting === 0);
    await clock.pass(1000);
    assert.deepEqual(server.heard, ["one", "two"]);
    const numbers = server.requests.filter(([verb]) => verb === "send").map(([, { seq }]) => seq);
    assert.deepEqual(numbers, ["1", "1", "1", "1", "2", "2", "2"]);
});

test("what is too large together is sent in parts, and what is too large alone is told and left out", async () => {
    const [client] = open(polling);
    const errors = [];
    client.on("error", (error) => errors.push(error.message));
    await isOpen(client);
    server.fault = (verb) => {
        if (verb !== "send") return undefined;
        const { body } = server.requests.at(-1)[2];
        return body.length > 1000 ? { status: 413, body: '{"error":"too large"}' } : undefined;
    };
    const texts = numbered(200).map((text, n) => (n === 70 ? "x".repeat(1001) : text));
    for (const text of texts) client.send(text);
    await clock.until("all", () => server.heard.length >= 199);
    assert.deepEqual(server.heard, texts.filter((_, n) => n !== 70));
    assert.deepEqual(errors, ["the server does not take a message: too large"]);
});

test("a session that is gone is followed by another, and what was not sent goes with it", async () => {
    for (const transports of [["sse", "polling"], ["polling"]]) {
        server.heard = [];
        const [client, seen] = open({ transports });
        await clock.until("it is there", () => client.transport === transports[0]);
        const first = only();
        // As after a restart without a word: 410 for everything.
        server.sessions.clear();
        first.abort();
        client.send("one");
        client.send("two");
        await clock.until("a new session", () => seen.opens.length === 2);
        await clock.until("what was said", () => server.heard.length >= 2);
        assert.deepEqual(server.heard, ["one", "two"]);
        assert.deepEqual(seen.closes.map((it) => [it.status, it.willReconnect]), [[410, true]]);
        client.close();
    }
});

test("what may have arrived before a session ended is not sent again", async () => {
    const [client, seen] = open(polling);
    await isOpen(client);
    server.fault = (verb, _, count) => (verb === "send" && count === 1 ? "silent" : undefined);
    client.send("one");
    await clock.until("it has arrived", () => server.heard.length);
    client.send("two");
    const first = only();
    server.sessions.clear();
    first.abort();
    await clock.until("the second", () => seen.opens.length === 2 && server.heard.length === 2);
    await clock.pass(1000);
    assert.deepEqual(server.heard, ["one", "two"]);
});

// Each ends a session, and the client comes back.
const ends = {
    "the poll says so": (session) => session.close(4000, ""),
    "the stream says so": (session) => session.close(4000, ""),
    "it is gone": (session) => {
        server.sessions.clear();
        session.abort();
    },
    "the client connects anew": (_, client) => client.reconnect(),
    "the page is left": () => globalThis.dispatchEvent(new Event("pagehide")),
};

for (const [how, end] of Object.entries(ends)) {
    test(`what is under way when a session ends is not sent again: ${how}`, async () => {
        const window = new EventTarget();
        for (const name of ["addEventListener", "removeEventListener", "dispatchEvent"]) {
            globalThis[name] = window[name].bind(window);
        }
        try {
            const transports = [how.includes("stream") ? "sse" : "polling"];
            const [client, seen] = open({ transports });
            await clock.until("it is there", () => client.transport === transports[0]);
            // The first answer says that nothing was taken, which says nothing of the second request.
            const faults = { 1: { status: 503 }, 2: "held" };
            server.fault = (verb, _, count) => (verb === "send" ? faults[count] : undefined);
            client.send("one");
            client.send("two");
            await clock.until("one has arrived", () => server.heard.length === 1);
            assert.equal(server.count("send"), 2);
            end(only(), client);
            await clock.until("what waited", () => server.heard.includes("two"));
            await clock.pass(1000);
            assert.deepEqual(server.heard, ["one", "two"]);
            assert.deepEqual([seen.opens.length, client.waiting], [2, 0]);
            client.close();
        } finally {
            for (const name of ["addEventListener", "removeEventListener", "dispatchEvent"]) delete globalThis[name];
        }
    });
}

test("what a session has not taken, for whatever reason, goes with the next one", async () => {
    for (const status of [503, 429, 401, 403, 409]) {
        server.heard = [];
        const [client, seen] = open(polling);
        await isOpen(client);
        const session = only();
        server.fault = (verb) => (verb === "send" && seen.opens.length < 2 ? { status } : undefined);
        client.send("one");
        client.send("two");
        await clock.until("it is asked again, or over", () => server.count("send") === 3 || seen.closes.length);
        session.close(4000, "");
        await clock.until("what was said", () => server.heard.length >= 2);
        await clock.pass(1000);
        assert.deepEqual([server.heard, seen.opens.length], [["one", "two"], 2], `${status}`);
        client.close();
        server.requests = [];
    }
});

test("a message by which the server closes is not sent for ever", async () => {
    const [client, seen] = open(polling);
    await isOpen(client);
    server.onMessage = (session, data) => {
        if (data === "bad") session.close(1011, "");
    };
    // The poll says that it is over before the POST is answered.
    server.fault = (verb) => (verb === "send" && server.heard.length < 5 ? "held" : undefined);
    client.send("bad");
    await clock.until("it is over", () => seen.closes.length);
    await clock.pass(60_000);
    assert.deepEqual([server.heard, seen.opens.length], [["bad"], 2]);
});

test("what a session that has ended refuses goes with the next one, even while it is asked again", async () => {
    const [client, seen] = open(polling);
    await isOpen(client);
    const first = only();
    server.sessions.clear();
    const faults = { 2: { status: 502 }, 3: "held" };
    server.fault = (verb, _, count) => (verb === "send" ? faults[count] : undefined);
    client.send("one");
    await clock.until("it is asked again", () => server.count("send") === 3, 8_000);
    first.abort();
    await clock.until("a new session", () => seen.opens.length === 2);
    await clock.until("what was said", () => server.heard.length);
    assert.deepEqual(server.heard, ["one"]);
});

test("a server that is gone is given up after a while, and found when it is there again", async () => {
    const [client, seen] = open(polling);
    await isOpen(client);
    server.die();
    const before = clock.now;
    await clock.until("given up", () => client.state === "waiting");
    assert.ok(clock.now - before >= 20_000 && clock.now - before < 25_000, `${clock.now - before}`);
    server.down = false;
    await isOpen(client);
    assert.equal(seen.opens.length, 2);
});

test("an interruption that is short is no reconnect", async () => {
    const [client, seen] = open(polling);
    await isOpen(client);
    for (let n = 1; n <= 4; n += 1) {
        server.down = true;
        await clock.pass(15_000);
        only().send("meanwhile");
        client.send("also meanwhile");
        server.down = false;
        await clock.until("both", () => seen.messages.length === n && server.heard.length === n);
    }
    assert.deepEqual(seen.closes, []);
});

test("the server's close comes behind the messages before it, by stream and by poll", async () => {
    for (const transports of [["sse"], ["polling"]]) {
        const [client, seen] = open({ transports });
        await clock.until("it is there", () => client.transport === transports[0]);
        only().send("last words");
        only().close(4003, "reason, 100 % ñ");
        await clock.until("closed", () => client.state === "waiting");
        assert.deepEqual(seen.messages, ["last words"]);
        assert.deepEqual(seen.closes,
            [{ code: 4003, reason: "reason, 100 % ñ", clean: true, willReconnect: true }]);
        client.close();
    }
});

test("a close sends what waits first, and receives nothing more", async () => {
    const [client, seen] = open(polling);
    await isOpen(client);
    const session = only();
    for (const text of numbered(150)) client.send(text);
    client.close(4000, `${"x".repeat(122)}ñ`);
    assert.equal(client.state, "closed");
    session.send("too late");
    await clock.until("the close", () => session.closedBy);
    assert.deepEqual(server.heard, numbered(150));
    assert.deepEqual(session.closedBy, { code: 4000, reason: "x".repeat(122) });
    assert.deepEqual(seen.messages, []);
    assert.deepEqual(seen.closes.map((it) => [it.code, it.willReconnect]), [[4000, false]]);
});

test("a stream is acknowledged, so that the server need not end it", async () => {
    const [client, seen] = open({ transports: ["sse"] });
    await clock.until("a stream", () => client.transport === "sse");
    const { stream } = only();
    for (const text of numbered(10_000)) {
        only().send(text);
        if (seen.messages.length % 300 === 0) await clock.settle();
    }
    await clock.pass(6000);
    assert.deepEqual(seen.messages, numbered(10_000));
    assert.equal(only().stream, stream);
    const acks = server.requests.filter(([verb]) => verb === "ack").map(([, { cursor }]) => Number(cursor));
    assert.ok(acks.length >= 30 && acks.length < 60, `${acks.length}`);
    assert.equal(acks.at(-1), 10_000);
    assert.equal(server.count("events"), 1);
    const before = [server.count("ack"), clock.now];
    for (let n = 0; n < 10; n += 1) only().send("x".repeat(30_000));
    await clock.settle();
    assert.deepEqual([server.count("ack"), clock.now], [before[0] + 1, before[1]], "large ones sooner");
});

test("an acknowledgement that fails is repeated after a wait that grows, and not before it is told to", async (t) => {
    t.mock.method(Math, "random", () => 1);
    for (const [fault, waits] of [
        [{ status: 500 }, [10_000, 15_000, 25_000, 45_000, 65_000, 65_000]],
        ["silent", [10_000, 15_000, 25_000, 45_000, 65_000, 65_000]],
        [{ status: 503, headers: { "Retry-After": "0" } }, [10_000, 15_000, 25_000]],
        [{ status: 429, headers: { "Retry-After": "120" } }, [125_000, 130_000, 140_000]],
    ]) {
        const asked = [];
        const events = server.count("events");
        // Not for ever, so that this ends if nobody waits.
        server.fault = (verb) => (verb === "ack" && asked.push(clock.now) <= waits.length ? fault : undefined);
        const [client, seen] = open({ transports: ["sse"] });
        await clock.until("a stream", () => client.transport === "sse");
        for (const text of numbered(300)) only().send(text);
        await clock.settle();
        assert.equal(asked.length, 1);
        // What comes meanwhile does not make it sooner.
        for (const text of numbered(300)) only().send(text);
        let timer = 0;
        const speak = () => {
            only().send("not silent");
            timer = setTimeout(speak, 30_000);
        };
        speak();
        await clock.until("it is taken", () => asked.length > waits.length);
        clearTimeout(timer);
        assert.deepEqual(asked.slice(1).map((at, n) => at - asked[n]), waits);
        assert.equal(server.count("events"), events + 1, "the stream has said nothing of it");
        // And then as before.
        for (const text of numbered(256)) only().send(text);
        await clock.settle();
        assert.equal(asked.length, waits.length + 2);
        assert.ok(seen.messages.length > 856);
        client.close();
    }
});

test("a stream that goes on acknowledges what came before it", async () => {
    const [client, seen] = open({ transports: ["sse"] });
    await clock.until("a stream", () => client.transport === "sse");
    for (const text of numbered(200)) only().send(text);
    only().stream.drop();
    await clock.until("the next stream", () => server.count("events") === 2);
    for (const text of numbered(100)) only().send(text);
    await clock.settle();
    assert.deepEqual([server.count("ack"), seen.messages.length], [0, 300]);
    only().stream.drop();
    await clock.until("another one", () => server.count("events") === 3);
    await clock.pass(20_000);
    assert.equal(server.count("ack"), 0);
});

test("a stream that has been silent for long is opened anew, and an idle client stays", async () => {
    const [client, seen] = open({ transports: ["sse", "polling"] });
    await clock.until("a stream", () => client.transport === "sse");
    await clock.pass(600_000);
    assert.ok(server.count("events") >= 13 && server.count("events") < 15, `${server.count("events")}`);
    assert.deepEqual([seen.closes, client.transport], [[], "sse"]);
});

test("answers that are cut because they are large are asked for in small ones", async () => {
    const sizes = [];
    server.fault = (verb, { session_id: id, max }) => {
        if (verb !== "poll" || !id) return undefined;
        sizes.push(max);
        return Number(max ?? 100) > 8 ? "cut" : undefined;
    };
    server.onSession = (session) => numbered(200).forEach((text) => session.send(text));
    const [, seen] = open(polling);
    await clock.until("all", () => seen.messages.length >= 200);
    assert.deepEqual(seen.messages, numbered(200));
    assert.ok(sizes.includes("16"), "and larger ones are tried again");
});

for (const transports of [["polling"], ["sse", "polling"]]) {
    const way = transports.join(" and ");
    test(`10 000 messages each way arrive once, in order, while a third of the answers is lost: ${way}`, async () => {
        const roll = dice(7);
        server.fault = (verb, { session_id: id }) => {
            if (!id || verb === "close" || roll() > 1 / 3) return undefined;
            return ["lost", "silent", "cut"][Math.floor(roll() * 3)];
        };
        const [client, seen] = open({ transports });
        await isOpen(client);
        const texts = numbered(10_000);
        let last = 0;
        let streamed = 0;
        for (const text of texts) {
            only().send(text);
            while (!client.send(text)) await clock.pass(100);
            last += 1;
            // What the server would not keep it would not take.
            if (last % 100 === 0) await clock.until("the client keeps up", () => seen.messages.length > last - 800);
            if (last % 500 === 0) only().stream?.drop();
            if (client.transport === "sse") streamed += 1;
        }
        await clock.until("all", () => seen.messages.length >= 10_000 && server.heard.length >= 10_000);
        await clock.pass(20_000);
        assert.deepEqual(seen.messages, texts);
        assert.deepEqual(server.heard, texts);
        assert.deepEqual(seen.opens.length, 1);
        assert.equal(streamed > 5000, transports.includes("sse"), `${streamed}`);
    });
}

// --- Rooms ---------------------------------------------------------------------------------------

const line = (room, id, text) => JSON.stringify({ id, room, type: "line", payload: text });
const joined = (room, payload) => JSON.stringify({ type: "joined", room, payload });

test("rooms are joined again after the last message that came, which comes once", async () => {
    const [client, seen] = open();
    client.join("a");
    client.join("a");
    client.join("b");
    await isOpen(client);
    client.join("c");
    client.leave("c");
    assert.deepEqual(client.rooms, ["a", "b"]);
    assert.deepEqual(server.heard, ['{"type":"join","room":"a","payload":{"room":"a"}}',
        '{"type":"join","room":"b","payload":{"room":"b"}}', '{"type":"join","room":"c","payload":{"room":"c"}}',
        '{"type":"leave","room":"c","payload":{"room":"c"}}']);
    only().send(joined("a", { epoch: "e", position: 0 }));
    only().send(joined("b", { epoch: "e", position: 40 }));
    for (const id of [1, 2, 3, 2, 3]) only().send(line("a", id, `${id}`));
    for (const id of [1, 1]) only().send(line("elsewhere", id, "no room of ours"));
    only().send('{"id":"2","room":"a","type":"line","payload":"no number"}');
    assert.deepEqual(seen.messages.slice(2).map((text) => JSON.parse(text).payload),
        ["1", "2", "3", "no room of ours", "no room of ours", "no number"]);

    server.heard = [];
    seen.messages = [];
    only().abort();
    await isOpen(client);
    assert.deepEqual(server.heard, ['{"type":"join","room":"a","payload":{"room":"a","epoch":"e","after":3}}',
        '{"type":"join","room":"b","payload":{"room":"b","epoch":"e","after":40}}']);
    for (const id of [3, 4, 5]) only().send(line("a", id, `${id}`));
    assert.deepEqual(seen.messages, [], "who has not been told waits");
    only().send(joined("a", { epoch: "e", position: 5, recovered: true }));
    only().send(line("a", 6, "6"));
    const lines = seen.messages.map((text) => JSON.parse(text)).filter((it) => it.type === "line");
    assert.deepEqual(lines.map((it) => it.payload), ["4", "5", "6"]);
    assert.deepEqual(seen.events, [["recovered", { room: "a", recovered: true }]]);
});

test("a room whose numbers have begun anew is shown whole, and said to be so before", async () => {
    const [client, seen] = open();
    client.join("a");
    await isOpen(client);
    only().send(joined("a", { epoch: "one", position: 0 }));
    for (const id of [1, 2, 3]) only().send(line("a", id, `one ${id}`));
    only().abort();
    await isOpen(client);
    const order = [];
    client.on("lost", ({ room }) => order.push(`lost ${room}`));
    client.onTyped("line", (text) => order.push(text));
    for (const id of [1, 2]) only().send(line("a", id, `two ${id}`));
    only().send(joined("a", { epoch: "two", position: 2, recovered: false }));
    only().send(line("a", 3, "two 3"));
    assert.deepEqual(order, ["lost a", "two 1", "two 2", "two 3"]);
    assert.deepEqual(seen.events[0], ["recovered", { room: "a", recovered: false }]);
});

test("what was not recovered is said, and the old messages are not shown again", async () => {
    const [client, seen] = open();
    client.join("a");
    await isOpen(client);
    only().send(joined("a", { epoch: "one", position: 7 }));
    only().send(line("a", 8, "8"));
    only().abort();
    await isOpen(client);
    for (const id of [7, 8, 90]) only().send(line("a", id, `${id}`));
    only().send(joined("a", { epoch: "one", position: 90, recovered: false }));
    assert.deepEqual(seen.events, [["recovered", { room: "a", recovered: false }], ["lost", { room: "a" }]]);
    assert.deepEqual(seen.messages.map((text) => JSON.parse(text)).filter((it) => it.id).map((it) => it.id), [8, 90]);
});

test("an answer that never comes, or is cut off, holds nothing back for good", async () => {
    const [client, seen] = open();
    client.join("a");
    await isOpen(client);
    only().send(joined("a", { epoch: "one", position: 1 }));
    only().abort();
    await isOpen(client);
    only().send(line("a", 2, "2"));
    await clock.pass(5_000);
    // The connection breaks before the answer: the next one sends it again, and it is shown once.
    only().abort();
    await isOpen(client);
    const again = '{"type":"join","room":"a","payload":{"room":"a","epoch":"one","after":1}}';
    assert.equal(server.heard.at(-1), again);
    seen.messages = [];
    only().send(line("a", 2, "2"));
    await clock.pass(9_000);
    assert.deepEqual(seen.messages, []);
    await clock.pass(1_000);
    assert.deepEqual(seen.messages, [line("a", 2, "2")]);
});

test("another vocabulary for rooms is spoken by options", async () => {
    const [client, seen] = open({
        names: { leave: "part" },
        joinMessage: (room, { id, epoch }) => (id === undefined ? `JOIN ${room}` : ["again", room, id, epoch]),
        joinAnswer: ({ type, payload }) => (type === "in" ? payload : undefined),
    });
    client.join("a");
    await isOpen(client);
    only().send('{"type":"in","payload":{"room":"a","epoch":"e","position":3}}');
    only().abort();
    await isOpen(client);
    only().send('{"type":"in","payload":{"room":"a","epoch":"e","position":3,"recovered":true}}');
    client.leave("a");
    assert.deepEqual(server.heard,
        ["JOIN a", '["again","a",3,"e"]', '{"type":"part","room":"a","payload":{"room":"a"}}']);
    assert.deepEqual(seen.events, [["recovered", { room: "a", recovered: true }]]);
});

test("rooms are kept while a session changes its transport, and joined again with a new one", async () => {
    server.webSocket = "fails";
    server.streams = "fails";
    const [client, seen] = open();
    client.join("a");
    await clock.until("joined", () => server.heard.length);
    server.streams = "open";
    await clock.pass(300_000);
    await clock.until("a stream", () => client.transport === "sse");
    assert.equal(server.heard.length, 1);
    only().close(1001, "");
    await clock.until("a new session", () => server.heard.length === 2);
    assert.equal(seen.opens.length, 2);
});
