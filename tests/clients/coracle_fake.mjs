// A server and a clock for the tests of assets/coracle.js: sessions by WebSocket, poll, stream and POST inside
// this process, faults where a test wants them, and time that passes when nothing else is left to do.

/** Takes the place of the timers. */
export class Clock {
    #now = 1;
    #timers = new Map();
    #last = 0;
    #before = {};

    install() {
        this.#before = { setTimeout, clearTimeout, now: performance.now };
        globalThis.setTimeout = (react, ms = 0, ...args) => {
            this.#last += 1;
            this.#timers.set(this.#last, { at: this.#now + Math.max(0, ms), react: () => react(...args) });
            return this.#last;
        };
        globalThis.clearTimeout = (id) => this.#timers.delete(id);
        performance.now = () => this.#now;
    }

    remove() {
        globalThis.setTimeout = this.#before.setTimeout;
        globalThis.clearTimeout = this.#before.clearTimeout;
        performance.now = this.#before.now;
    }

    get now() {
        return this.#now;
    }

    get pending() {
        return this.#timers.size;
    }

    /** Lets everything happen that needs no time. */
    async settle() {
        // A turn of the real loop ends when no microtask is left; what one turn has begun may need another.
        for (let turn = 0; turn < 3; turn += 1) await new Promise((done) => setImmediate(done));
    }

    /** Lets time pass until something is so. */
    async until(what, holds, most = 3_600_000) {
        const end = this.#now + most;
        for (;;) {
            await this.settle();
            if (holds()) return;
            const [id, next] = [...this.#timers].reduce((one, other) => (other[1].at < one[1].at ? other : one),
                [0, { at: Infinity }]);
            if (next.at > end) throw new Error(`does not come about: ${what}`);
            this.#timers.delete(id);
            this.#now = Math.max(this.#now, next.at);
            next.react();
        }
    }

    async pass(ms) {
        let over = false;
        globalThis.setTimeout(() => { over = true; }, ms);
        await this.until(`${ms} ms`, () => over, ms + 1);
    }
}

const KEPT = 1024; // messages of a session that are not acknowledged, at most

/** One that holds sessions, and does what a test has it do with what it hears. */
export class FakeServer {
    sessions = new Map();
    sockets = [];
    requests = []; // [verb, query] of each
    heard = []; // what clients have sent, in order
    onSession = () => {}; // (session): has been made
    onMessage = () => {}; // (session, data)
    /**
     * What becomes of a request: "lost" before it arrives, "silent" after, "cut" in the answer, "held" when it has
     * arrived, until the client gives it up, or an answer.
     */
    fault = () => undefined; // (verb, query, count)
    webSocket = "open"; // or "throws", "fails", "hangs"
    streams = "open"; // or "held" by a proxy, "fails"
    overlap = 0; // so many messages are sent again that the client has said it has
    down = false;
    #made = 0;

    constructor() {
        const server = this;
        this.fetch = (url, init) => server.#ask(url, init);
        this.WebSocket = class extends FakeSocket {
            constructor(url) {
                super(server, url);
            }
        };
        this.EventSource = class extends FakeStream {
            constructor(url) {
                super(server, url);
            }
        };
    }

    /** What `connect` needs to come here. */
    get parts() {
        return { WebSocket: this.WebSocket, EventSource: this.EventSource, fetch: this.fetch };
    }

    count(verb) {
        return this.requests.filter(([it]) => it === verb).length;
    }

    make(path, socket) {
        this.#made += 1;
        const session = new FakeSession(this, `token-${this.#made}`, path, socket);
        this.sessions.set(session.token, session);
        return session;
    }

    take(session, data) {
        this.heard.push(data);
        this.onMessage(session, data);
    }

    /** Stops without a word, and forgets everybody. */
    die() {
        this.down = true;
        for (const session of this.sessions.values()) session.abort();
        this.sessions.clear();
    }

    async #ask(url, { method, body, headers = {}, signal } = {}) {
        const { pathname, searchParams } = new URL(url);
        const verb = pathname.replace(/^.*\//, "");
        const query = Object.fromEntries(searchParams);
        this.requests.push([verb, query, { method, body, headers }]);
        if (this.down) throw new TypeError("fetch failed");
        const fault = this.fault(verb, query, this.count(verb));
        if (fault === "lost") throw new TypeError("fetch failed");
        if (typeof fault === "object") return answer(fault.status, fault.body ?? "", fault.headers);
        const answered = await Promise.race([this.#answer(verb, query, body, headers), aborted(signal)]);
        if (fault === "held") await aborted(signal);
        if (this.down || fault === "silent") throw new TypeError("fetch failed");
        if (fault === "cut") answered.text = async () => { throw new TypeError("terminated"); };
        return answered;
    }

    async #answer(verb, query, body, headers) {
        if (verb === "poll" && !query.session_id) {
            const session = this.make(query.path);
            this.onSession(session);
            return session.answer([], 0);
        }
        const session = this.sessions.get(query.session_id);
        if (!session) return refused(410, "this session has ended");
        if (query.cursor !== undefined) session.acknowledge(Number(query.cursor));
        if (verb === "poll") return session.poll(Number(query.cursor), Number(query.max ?? 100));
        if (verb === "ack") return answer(204, "");
        if (verb === "close") {
            session.closedBy = { code: Number(query.code), reason: query.reason };
            this.sessions.delete(session.token);
            session.abort();
            return answer(204, "");
        }
        return this.#send(session, Number(query.seq), body, headers["Content-Type"]);
    }

    #send(session, seq, body, type) {
        if (seq === session.seq) return answer(200, '{"status":"queued","repeated":true}');
        if (seq !== session.seq + 1) return refused(409, "a number is missing");
        session.seq = seq;
        const messages = type === "application/json" ? JSON.parse(body) : [body];
        for (const it of messages) {
            this.take(session, it.$binary === undefined ? it : Uint8Array.from(Buffer.from(it.$binary, "base64")));
        }
        return answer(202, '{"status":"queued"}');
    }
}

/** What the server keeps of a client. */
class FakeSession {
    closedBy = null;
    seq = 0;
    closing = null;
    stream = null;
    #next = 1;
    #kept = []; // [number, data]
    #poll = null;

    constructor(server, token, path, socket) {
        Object.assign(this, { server, token, path, socket });
    }

    send(data) {
        if (this.socket) return this.socket.onmessage?.({ data });
        this.#kept.push([this.#next, data]);
        this.#next += 1;
        this.#move();
    }

    close(code, reason) {
        if (this.socket) return this.socket.gone(code, reason, true);
        this.closing = { code, reason };
        this.#move();
    }

    abort() {
        this.socket?.gone(1006, "", false);
        this.stream?.drop();
        this.#poll?.(null);
        this.#poll = null;
    }

    acknowledge(cursor) {
        this.#kept = this.#kept.filter(([number]) => number > cursor - this.server.overlap);
    }

    async poll(cursor, max) {
        if (this.#poll) return refused(409, "another poll waits");
        const waits = () => !this.#kept.some(([number]) => number > cursor);
        if (waits() && !this.closing) {
            await new Promise((resolve) => {
                const timer = setTimeout(resolve, 10_000);
                this.#poll = () => {
                    clearTimeout(timer);
                    resolve();
                };
            });
            this.#poll = null;
        }
        const taken = this.#kept.slice(0, max);
        return this.answer(taken.map(([, data]) => data), taken.at(-1)?.[0] ?? cursor);
    }

    answer(messages, cursor) {
        const headers = { "Coracle-Session": this.token, "Coracle-Cursor": String(cursor) };
        const rest = this.#kept.length - messages.length;
        if (this.closing && !rest) {
            headers["Coracle-Close"] = `${this.closing.code} ${encodeURIComponent(this.closing.reason)}`;
        }
        const written = messages.map((data) => (typeof data === "string" ? data
            : { $binary: Buffer.from(data).toString("base64") }));
        return answer(200, JSON.stringify(written), headers);
    }

    streamed(stream, cursor) {
        this.stream?.drop();
        this.#poll?.();
        this.stream = stream;
        this.acknowledge(cursor);
        stream.sent = cursor - this.server.overlap;
        stream.emit("open", JSON.stringify({ session_id: this.token, cursor }));
        this.#move();
    }

    #move() {
        this.#poll?.();
        const { stream } = this;
        if (!stream) return;
        for (const [number, data] of this.#kept) {
            if (number <= stream.sent || stream.gone) continue;
            stream.sent = number;
            if (typeof data !== "string") stream.emit("binary", Buffer.from(data).toString("base64"), number);
            else if (data.includes("\r")) stream.emit("string", JSON.stringify(data), number);
            else stream.emit("message", data, number);
        }
        if (this.closing) stream.emit("close", JSON.stringify(this.closing));
        else if (this.#kept.length >= KEPT) stream.drop();
    }
}

class FakeSocket {
    readyState = 0;
    bufferedAmount = 0;
    #server;
    #session = null;

    constructor(server, url) {
        if (server.webSocket === "throws") throw new Error("there is no WebSocket here");
        this.#server = server;
        this.url = url;
        server.sockets.push(this);
        if (server.webSocket === "hangs") return;
        queueMicrotask(() => {
            if (server.down || server.webSocket === "fails") return this.gone(1006, "", false);
            if (this.readyState) return;
            this.readyState = 1;
            const { pathname, search } = new URL(url);
            this.#session = server.make(`${pathname}${search}`, this);
            this.onopen?.({});
            server.onSession(this.#session);
        });
    }

    send(data) {
        this.#server.take(this.#session, data);
    }

    close(code, reason) {
        if (this.readyState > 1) return;
        this.readyState = 2;
        if (this.#session) this.#session.closedBy = { code, reason };
        queueMicrotask(() => this.gone(code ?? 1005, reason ?? "", true));
    }

    gone(code, reason, wasClean) {
        if (this.readyState === 3) return;
        this.readyState = 3;
        this.#server.sessions.delete(this.#session?.token);
        this.onclose?.({ code, reason, wasClean });
    }
}

class FakeStream {
    sent = 0;
    gone = false;
    #listeners = new Map();

    constructor(server, url) {
        const query = Object.fromEntries(new URL(url).searchParams);
        server.requests.push(["events", query]);
        queueMicrotask(() => {
            const session = server.sessions.get(query.session_id);
            if (server.down || server.streams === "fails" || !session) return this.drop();
            this.held = server.streams === "held";
            // The browser's own event comes with the head of the answer, which a proxy lets through.
            this.#fire({ type: "open" });
            session.streamed(this, Number(query.cursor));
        });
    }

    addEventListener(type, listener) {
        this.#listeners.set(type, listener);
    }

    emit(type, data, number) {
        const lastEventId = number === undefined ? "" : String(number);
        if (!this.held) this.#fire({ type, data, lastEventId });
    }

    /** The connection is lost. */
    drop() {
        if (this.gone) return;
        this.#fire({ type: "error" });
        this.gone = true;
    }

    close() {
        this.gone = true;
    }

    #fire(event) {
        if (!this.gone) this.#listeners.get(event.type)?.(event);
    }
}

function answer(status, body, headers = {}) {
    return { status, headers: new Headers(headers), text: async () => body };
}

function refused(status, error) {
    return answer(status, JSON.stringify({ error }));
}

function aborted(signal) {
    return new Promise((_, reject) => {
        signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
    });
}
