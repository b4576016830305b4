// The browser's side of coracle: one connection to one server that is kept up, whatever lies between.
//
//     import { connect } from "/coracle.js";
//     const client = connect("/ws");
//     client.onTyped("chat.message", (payload) => console.log(payload.text));
//     client.join("lobby");
//     client.emit("chat.message", { text: "hello" }, { room: "lobby" });
//
// WebSocket where it passes; else an event stream, else polling, both with POST, which are one session of
// the server. It comes back by itself, joins its rooms again and drops what it has had already.
// The manual is `coracle::docs::browser`. No dependency, no build step; a page needs `script-src` and
// `connect-src` for it, and nothing else.

/** @typedef {"connecting" | "open" | "waiting" | "closed"} State */
/** @typedef {"websocket" | "sse" | "polling"} Transport */
/** @typedef {string | ArrayBuffer | ArrayBufferView} Data */
/** @typedef {string | Uint8Array} Received */

/**
 * A typed message. Numbers are JavaScript's: beyond 2^53 they are rounded, and the text has them as they came.
 * @typedef {object} Envelope
 * @property {string | number} [id]
 * @property {string} [kind]
 * @property {string | number} [ts]
 * @property {string} [room]
 * @property {string} type
 * @property {any} [payload]
 */

/**
 * Why a connection has ended, or has not come about.
 * @typedef {object} End
 * @property {number} code 1006 where nobody has said one; 1008 where the server has refused with 401 or 403
 * @property {string} reason for whoever reads it
 * @property {boolean} clean the server has said so
 * @property {number} [status] of the HTTP answer, where one was the reason
 * @property {number} [retryAfter] milliseconds, as the server has asked for
 */

/**
 * What is known of a room's messages.
 * @typedef {object} Last
 * @property {number} [id] the last one we have had
 * @property {string} [epoch] which numbers these are
 */

/**
 * What an answer to a join says.
 * @typedef {object} Joined
 * @property {string} room
 * @property {boolean} [recovered] whether everything since our last message follows
 * @property {string} [epoch]
 * @property {number} [position] the id of the room's last message before what follows
 */

/**
 * All of it may be left out. Times are in milliseconds.
 * @typedef {object} Options
 * @property {Transport[]} [transports] which ones may be tried; all of them
 * @property {string} [base] where the server has its fallbacks, `Fallbacks`' path; "/ws"
 * @property {string} [path] the path and query by which the server knows us, where a proxy rewrites them
 * @property {string | string[]} [protocols] WebSocket subprotocols
 * @property {boolean} [withCredentials] cookies also to another origin; false
 * @property {number} [openTimeout] until a connection has to be open; 5 000
 * @property {number} [streamTimeout] until an event stream has to say something; 3 000
 * @property {number} [patience] after which a session that cannot be reached is given up; 20 000
 * @property {{base?: number, cap?: number}} [backoff] before reconnecting: a random part of `base`, doubled with
 *   each failure up to `cap`; 500 and 30 000
 * @property {number} [steady] after which a connection counts as one that works; 5 000
 * @property {number[] | ((end: End) => boolean)} [final] after which there is no reconnecting; codes 1000 and 1008
 * @property {{messages?: number, bytes?: number}} [queue] what may wait to be sent; 1 024 and 1 MiB
 * @property {boolean} [typed] whether texts are read as envelopes; true
 * @property {{join?: string, leave?: string, joined?: string}} [names] the types of the messages about rooms
 * @property {(room: string, last: Last) => string | object} [joinMessage] instead of the usual one
 * @property {(room: string) => string | object} [leaveMessage] instead of the usual one
 * @property {(envelope: Envelope) => Joined | undefined} [joinAnswer] reads another vocabulary's answer
 * @property {any} [WebSocket] instead of the global one
 * @property {any} [EventSource] instead of the global one
 * @property {any} [fetch] instead of the global one
 */

const DEFAULTS = {
    transports: ["websocket", "sse", "polling"],
    base: "/ws",
    path: undefined,
    protocols: undefined,
    withCredentials: false,
    openTimeout: 5_000,
    streamTimeout: 3_000,
    patience: 20_000, // under the 30 s for which the server keeps a session that says nothing
    backoff: { base: 500, cap: 30_000 },
    steady: 5_000,
    final: [1000, 1008],
    queue: { messages: 1024, bytes: 1 << 20 }, // as the server's own queues
    typed: true,
    names: { join: "join", leave: "leave", joined: "joined" },
    joinMessage: undefined,
    leaveMessage: undefined,
    joinAnswer: undefined,
    WebSocket: undefined,
    EventSource: undefined,
    fetch: undefined,
};

const EVENTS = ["open", "message", "typed", "close", "state", "transport", "recovered", "lost", "error"];

const POLL = 25_000; // ms: the server answers after 10 s, and a proxy may be slow
const POST = 20_000; // ms for any other request: the server waits for 10 s until a message is taken
const FLUSH = 5_000; // ms in which a session that is closed may send what waits
const SILENCE = 45_000; // ms: a stream that is silent for so long may be dead, and is opened anew
const STEADY_STREAM = 1_000; // ms: one that ends sooner, and without a message, is no use
const STALE = 10_000; // ms: the same, when the network has come back
const BLOCKED = 300_000; // ms for which a transport that does not pass is not tried again
const SUSPICION = 3; // failures in a row of a WebSocket that has worked before: a restart is no blockade
const HURRY = 1_000; // ms between two attempts that the browser's events bring forward
const LONGEST_WAIT = 3_600_000; // ms: who says Retry-After: 10 years is not believed
const BATCH_MESSAGES = 100; // of one POST
const BATCH_BYTES = 48 * 1024; // of one POST: with what JSON adds, below the server's 64 KiB
const ACK_MESSAGES = 256; // a quarter of what the server keeps for us before it ends a stream
const ACK_BYTES = 256 * 1024; // the same
const ACK_TIME = 5_000; // ms until what is less is acknowledged, too
const ACK_BACKOFF = { base: ACK_TIME, cap: 60_000 }; // and on top of it after one that failed
const HELD_TIME = 10_000; // ms for which a room waits for the answer to a join
const HELD_MESSAGES = 4096; // of a room that waits: four times what fits into the server's queue for us
const HELD_SIZE = 4 << 20; // characters, the same
const DRAIN = 50; // ms between two looks at whether a full WebSocket takes more: it does not tell

const now = () => performance.now();

/**
 * Connects, and stays connected until `close` is called or the server says that it is over.
 * @param {string | URL} url "/ws", or a whole URL of ws:, wss:, http: or https:
 * @param {Options} [options]
 * @returns {Coracle}
 * @throws {TypeError} for what is no URL, and for an option that does not exist
 */
export function connect(url, options) {
    return new Coracle(url, options);
}

/** A client. Nothing is called before the current task has ended, so there is time to add listeners. */
export class Coracle {
    #options;
    #host;
    #known;
    #listeners = new Map();
    #rooms = new Map();
    #queue;
    /** @type {State} */
    #state = "connecting";
    #link = null; // the connection, or the attempt at one
    #dodged = false; // WebSocket has failed in this attempt
    #failures = 0; // since a connection has lasted
    #connections = 0;
    #dialled = -Infinity;
    #ordered = false; // the server has said how long to wait
    #timer = 0;
    #steady = 0;
    #unlisten = () => {};

    /**
     * @param {string | URL} url as for `connect`
     * @param {Options} [options]
     */
    constructor(url, options = {}) {
        this.#options = settle(options);
        const address = locate(url, this.#options);
        this.#known = knownOf(address.websocket.host);
        this.#queue = new Queue(this.#options.queue);
        // What a link sees of us. One that is not ours any more is not heard.
        const heard = (react) => (link, ...rest) => {
            if (link === this.#link) react.call(this, link, ...rest);
        };
        this.#host = {
            address,
            options: this.#options,
            known: this.#known,
            opened: heard(this.#opened),
            moved: heard((link) => this.#fire("transport", link.transport)),
            message: heard((_, data) => this.#message(data)),
            trouble: heard((_, error) => this.#fire("error", error)),
            ended: heard(this.#ended),
        };
        this.#listen();
        queueMicrotask(() => {
            if (this.#state === "connecting" && !this.#link) this.#dial();
        });
    }

    /** @returns {State} */
    get state() {
        return this.#state;
    }

    /** Which way the messages come just now. @returns {Transport | null} */
    get transport() {
        return (this.#state === "open" && this.#link?.transport) || null;
    }

    /** The rooms that we are in, or shall be. @returns {string[]} */
    get rooms() {
        return [...this.#rooms.keys()];
    }

    /** How many messages wait to be sent. @returns {number} */
    get waiting() {
        return this.#queue.length;
    }

    /**
     * Adds a listener; what it throws is reported, and harms nobody else.
     *
     * - `open` ({transport, again}): a new session of the server; what is sent here goes before all that waits
     * - `message` ({data, envelope}): any message; `data` is a string or a Uint8Array
     * - `typed` (envelope), and `type:NAME` (payload, envelope)
     * - `close` ({code, reason, clean, status, willReconnect}): an open connection has ended, or it is over
     * - `state` ({state, before, delay, end}): with `waiting`, after how many ms is tried again, and why
     * - `transport` ("websocket", "sse", "polling")
     * - `recovered` ({room, recovered}): whether all that was missed in a room follows; `lost` ({room}) if not
     * - `error` (Error): something that was sent could not be delivered and was dropped
     *
     * @param {string} type
     * @param {(...args: any[]) => void} listener
     * @returns {() => void} removes it
     */
    on(type, listener) {
        if (!EVENTS.includes(type) && !type.startsWith("type:")) {
            throw new TypeError(`there is no event ${type}: ${EVENTS.join(", ")}, type:NAME`);
        }
        const entry = { listener };
        const entries = this.#listeners.get(type) ?? [];
        this.#listeners.set(type, [...entries, entry]);
        return () => {
            const left = this.#listeners.get(type)?.filter((it) => it !== entry) ?? [];
            if (left.length) this.#listeners.set(type, left);
            else this.#listeners.delete(type);
        };
    }

    /**
     * Adds a listener for typed messages of one type.
     * @param {string} type
     * @param {(payload: any, envelope: Envelope) => void} listener
     * @returns {() => void} removes it
     */
    onTyped(type, listener) {
        return this.on(`type:${type}`, listener);
    }

    /**
     * Sends a message, or lets it wait for the connection. What was on its way when a connection broke may have
     * arrived or not; what waited has not, and goes with the next one.
     * @param {Data} data a text, or bytes, which are copied
     * @returns {boolean} false, and nothing is sent: too much waits, or the client is closed
     * @throws {TypeError} for anything else
     */
    send(data) {
        const item = itemOf(data);
        if (this.#state === "closed" || !this.#queue.push(item)) return false;
        if (this.#state === "open") this.#link?.pump();
        return true;
    }

    /**
     * Sends a typed message.
     * @param {string} type
     * @param {any} [payload] whatever JSON can say
     * @param {{id?: string | number, kind?: string, ts?: string | number, room?: string}} [about]
     * @returns {boolean} as `send`
     * @throws {TypeError} for what JSON cannot say
     */
    emit(type, payload, about = {}) {
        const { id, kind, ts, room } = about;
        return this.send(JSON.stringify({ id, kind, ts, room, type, payload }));
    }

    /**
     * Joins a room, now and after every reconnect, then with the id of the last message we have had of it.
     * @param {string} room
     */
    join(room) {
        if (this.#rooms.has(room)) return;
        this.#rooms.set(room, newRoom());
        if (this.#state === "open") this.#enter(room);
    }

    /**
     * Leaves a room.
     * @param {string} room
     */
    leave(room) {
        const left = this.#rooms.get(room);
        if (!left) return;
        this.#letGo(left);
        this.#rooms.delete(room);
        if (this.#state !== "open") return;
        const { leaveMessage, names } = this.#options;
        this.#say(leaveMessage ? leaveMessage(room) : { type: names.leave, room, payload: { room } });
    }

    /**
     * Closes for good. What waits is still sent if there is a connection; nothing more is received.
     * @param {number} [code] 1000, or 3000 to 4999
     * @param {string} [reason] at most 123 bytes arrive
     * @throws {RangeError} for another code
     */
    close(code = 1000, reason = "") {
        if (code !== 1000 && !(Number.isInteger(code) && code >= 3000 && code < 5000)) {
            throw new RangeError(`a close code is 1000 or from 3000 to 4999, and not ${code}`);
        }
        if (this.#state === "closed") return;
        const link = this.#link;
        this.#link = null;
        // In a listener of `open`.
        this.#queue.release();
        const cut = cutText(reason, 123);
        if (link?.opened) link.close(code, cut);
        else link?.drop();
        this.#finish({ code, reason: cut, clean: true });
    }

    /** Connects now: anew if there is a connection, without waiting if there is none, again if it was closed. */
    reconnect() {
        const link = this.#link;
        this.#link = null;
        if (link) this.#queue.putBack(link.drop());
        if (this.#state === "closed") this.#listen();
        clearTimeout(this.#steady);
        clearTimeout(this.#timer);
        this.#setState("connecting");
        if (link?.opened && this.#state === "connecting") {
            this.#fire("close", { ...failure("it is connected anew"), willReconnect: true });
        }
        // Unless a listener has thought of something else.
        if (this.#state === "connecting" && !this.#link) this.#dial();
    }

    // --- Connecting ------------------------------------------------------------------------------

    #dial() {
        clearTimeout(this.#timer);
        this.#dialled = now();
        this.#dodged = false;
        const { options, known } = this.#host;
        const socket = options.transports.includes("websocket") && (options.WebSocket ?? globalThis.WebSocket);
        const blocked = this.#mayFallBack() && known.websocketFrom > now();
        const link = socket && !blocked ? new WebSocketLink(this.#host, this.#queue, socket)
            : this.#mayFallBack() ? new HttpLink(this.#host, this.#queue) : null;
        this.#link = link;
        this.#setState("connecting");
        if (!link) this.#ended(null, failure("none of the transports is there"));
        else if (this.#link === link) link.start();
    }

    #mayFallBack() {
        const { transports, fetch } = this.#options;
        return Boolean(fetch ?? globalThis.fetch)
            && (transports.includes("sse") || transports.includes("polling"));
    }

    #opened(link) {
        this.#connections += 1;
        this.#steady = setTimeout(() => { this.#failures = 0; }, this.#options.steady);
        if (link instanceof WebSocketLink) {
            this.#known.websocketWorks = true;
            this.#known.websocketFrom = 0;
        } else if (this.#dodged) {
            this.#known.websocketFrom = now() + BLOCKED;
        }
        // Who has to say who they are does so in `open`, before rooms and before what has waited.
        const queue = this.#queue;
        queue.hold();
        this.#setState("open");
        if (this.#link === link) this.#fire("transport", link.transport);
        if (this.#link === link) this.#fire("open", { transport: link.transport, again: this.#connections > 1 });
        if (this.#link === link) for (const room of this.rooms) this.#enter(room);
        // Not to a newer one: who closes the client there has it sent.
        queue.release();
        if (this.#link === link) link.pump();
    }

    #ended(link, end) {
        this.#link = null;
        clearTimeout(this.#steady);
        if (link) this.#queue.putBack(link.unsent);
        const wasOpen = Boolean(link?.opened);
        if (link instanceof WebSocketLink && !wasOpen && this.#mayFallBack()
            && (!this.#known.websocketWorks || this.#failures >= SUSPICION)) {
            this.#dodged = true;
            this.#link = new HttpLink(this.#host, this.#queue);
            this.#link.start();
            return;
        }
        // Whatever was in the way of WebSocket is in the way of everything now, and may be gone next time.
        if (link instanceof HttpLink && !wasOpen) this.#known.websocketFrom = 0;
        if (this.#isFinal(end)) return this.#finish(end);
        const delay = waitFor(end, this.#failures, this.#options.backoff);
        this.#ordered = end.retryAfter !== undefined;
        this.#failures += 1;
        this.#timer = setTimeout(() => this.#dial(), delay);
        this.#setState("waiting", { delay, end });
        if (wasOpen && this.#state === "waiting") this.#fire("close", { ...end, willReconnect: true });
    }

    #isFinal(end) {
        const { final } = this.#options;
        if (typeof final !== "function") return final.includes(end.code);
        try {
            return Boolean(final(end));
        } catch (error) {
            report(error);
            return false;
        }
    }

    #finish(end) {
        clearTimeout(this.#timer);
        clearTimeout(this.#steady);
        this.#unlisten();
        // A link that is closing has the old one, and sends what is in it.
        this.#queue = new Queue(this.#options.queue);
        this.#failures = 0;
        for (const room of this.#rooms.values()) this.#letGo(room);
        this.#setState("closed", { end });
        if (this.#state === "closed") this.#fire("close", { ...end, willReconnect: false });
    }

    /** What the browser knows of the network and of who is looking. */
    #listen() {
        const hurry = () => this.#hurry();
        const online = () => {
            // Perhaps another network, and what was in the way is not in this one.
            this.#known.websocketFrom = this.#known.streamFrom = 0;
            hurry();
        };
        const visible = () => {
            if (globalThis.document.visibilityState === "visible") hurry();
        };
        // A WebSocket ends with its page; of a session by HTTP the others would hear after half a minute.
        const away = () => {
            if (this.#link instanceof HttpLink) this.#ended(this.#link, this.#link.leave());
        };
        const added = [[globalThis, "online", online], [globalThis, "pageshow", hurry],
            [globalThis, "pagehide", away], [globalThis.document, "visibilitychange", visible]];
        for (const [target, type, listener] of added) target?.addEventListener?.(type, listener);
        this.#unlisten = () => {
            for (const [target, type, listener] of added) target?.removeEventListener?.(type, listener);
        };
    }

    #hurry() {
        if (this.#state === "waiting" && !this.#ordered && now() - this.#dialled > HURRY) this.#dial();
        else this.#link?.nudge();
    }

    // --- Messages --------------------------------------------------------------------------------

    #message(data) {
        const envelope = this.#options.typed && typeof data === "string" ? envelopeOf(data) : undefined;
        const answer = envelope && this.#answer(envelope);
        if (answer) this.#joined(answer);
        else if (envelope && !this.#note(data, envelope)) return;
        this.#deliver(data, envelope);
    }

    #deliver(data, envelope) {
        this.#fire("message", { data, envelope });
        if (!envelope) return;
        this.#fire("typed", envelope);
        this.#fire(`type:${envelope.type}`, envelope.payload, envelope);
    }

    #say(message) {
        this.send(typeof message === "string" ? message : JSON.stringify(message));
    }

    // --- Rooms -----------------------------------------------------------------------------------

    #enter(name) {
        const room = this.#rooms.get(name);
        if (!room) return;
        const { joinMessage, names } = this.#options;
        const { after, epoch } = room;
        room.asked = after !== undefined;
        // The server sends what we have missed, and then says whether that was all, and of the same numbering.
        // Until then nobody can tell what is new, and what was held for an earlier answer comes again.
        this.#letGo(room);
        if (room.asked && epoch !== undefined) {
            room.held = [];
            room.timer = setTimeout(() => this.#release(room), HELD_TIME);
        }
        try {
            this.#say(joinMessage ? joinMessage(name, { id: after, epoch })
                : { type: names.join, room: name, payload: { room: name, epoch, after } });
        } catch (error) {
            report(error);
        }
    }

    /** Keeps what a message says of its room; false for one that we have had, or that has to wait. */
    #note(data, envelope) {
        const room = this.#rooms.get(envelope.room);
        if (!room || !isNumber(envelope.id)) return true;
        if (!room.held) return isNew(room, envelope.id);
        room.held.push({ data, envelope });
        room.heldSize += data.length;
        if (room.held.length > HELD_MESSAGES || room.heldSize > HELD_SIZE) this.#release(room);
        return false;
    }

    #release(room) {
        for (const { data, envelope } of this.#letGo(room)) {
            if (this.#state === "open" && isNew(room, envelope.id)) this.#deliver(data, envelope);
        }
    }

    #letGo(room) {
        clearTimeout(room.timer);
        const held = room.held ?? [];
        room.held = null;
        room.heldSize = 0;
        return held;
    }

    /** @returns {Joined | undefined} */
    #answer(envelope) {
        const { joinAnswer, names } = this.#options;
        if (joinAnswer) {
            try {
                return joinAnswer(envelope);
            } catch (error) {
                report(error);
                return undefined;
            }
        }
        if (envelope.type !== names.joined || typeof envelope.room !== "string") return undefined;
        const { recovered, epoch, position } = Object(envelope.payload);
        return { room: envelope.room, recovered, epoch, position };
    }

    #joined({ room: name, recovered, epoch, position }) {
        const room = this.#rooms.get(name);
        if (!room) return;
        const anew = epoch !== undefined && room.epoch !== undefined && epoch !== room.epoch;
        if (epoch !== undefined) room.epoch = epoch;
        // Other numbers: the old ones say nothing of them.
        if (anew) room.seen = room.after = undefined;
        // From here it goes on if nothing is said before the next reconnect. We have not seen it, though: the
        // server may send some of what was before.
        if (isNumber(position) && (recovered !== true || anew)) room.after = position;
        const asked = room.asked && (recovered !== undefined || anew);
        room.asked = false;
        const whole = recovered === true && !anew;
        if (asked) this.#fire("recovered", { room: name, recovered: whole });
        if (asked && !whole) this.#fire("lost", { room: name });
        this.#release(room);
    }

    // --- Listeners -------------------------------------------------------------------------------

    #setState(state, about) {
        const before = this.#state;
        this.#state = state;
        if (state !== before) this.#fire("state", { state, before, ...about });
    }

    #fire(type, ...args) {
        for (const { listener } of this.#listeners.get(type) ?? []) {
            try {
                listener(...args);
            } catch (error) {
                report(error);
            }
        }
    }
}

// --- WebSocket -----------------------------------------------------------------------------------

class WebSocketLink {
    transport = "websocket";
    opened = false;
    unsent = [];
    #host;
    #queue;
    #make;
    #socket = null;
    #timer = 0;

    constructor(host, queue, make) {
        this.#host = host;
        this.#queue = queue;
        this.#make = make;
    }

    start() {
        const { address, options } = this.#host;
        try {
            this.#socket = new this.#make(address.websocket.href, options.protocols ?? []);
        } catch (error) {
            // A page with https may not open ws:, and whoever blocks WebSocket may have replaced it.
            queueMicrotask(() => this.#end(failure(String(error))));
            return;
        }
        const socket = this.#socket;
        socket.binaryType = "arraybuffer";
        this.#timer = setTimeout(() => {
            this.#end(failure(`no WebSocket within ${options.openTimeout} ms`));
        }, options.openTimeout);
        socket.onopen = () => {
            clearTimeout(this.#timer);
            this.opened = true;
            this.#host.opened(this);
        };
        socket.onmessage = ({ data }) => {
            this.#host.message(this, typeof data === "string" ? data : new Uint8Array(data));
        };
        socket.onclose = ({ code, reason, wasClean }) => {
            this.#end({ code, reason, clean: Boolean(wasClean) });
        };
        // The close event follows, and says more.
        socket.onerror = () => {};
    }

    pump() {
        this.#send(this.#host.options.queue.bytes);
        if (this.#queue.length && this.#socket?.readyState === OPEN) {
            this.#timer = setTimeout(() => this.pump(), DRAIN);
        }
    }

    /** Gives the socket what waits, while it holds no more than so many bytes itself. */
    #send(most) {
        clearTimeout(this.#timer);
        const socket = this.#socket;
        while (this.#queue.length && socket?.readyState === OPEN && socket.bufferedAmount <= most) {
            socket.send(this.#queue.take(1)[0].data);
        }
    }

    // The browser sees a lost network by itself, and tells.
    nudge() {}

    close(code, reason) {
        this.#send(Infinity);
        this.#release()?.close(code, reason);
    }

    drop() {
        this.#release()?.close();
        return [];
    }

    #release() {
        clearTimeout(this.#timer);
        const socket = this.#socket;
        this.#socket = null;
        if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
        return socket;
    }

    #end(end) {
        this.#release()?.close();
        this.#host.ended(this, end);
    }
}

const OPEN = 1; // WebSocket.readyState, also of one that has been replaced

// --- A session by HTTP ---------------------------------------------------------------------------

// Down by an event stream or by polls, whichever passes, and never both at once; up by POST. Every message
// down has a number, and the cursor is the number of the last one that was delivered: what is named by it is
// not sent again, all else is sent until it arrives.
class HttpLink {
    transport = "polling";
    opened = false;
    unsent = [];
    #host;
    #queue;
    #fetch;
    #token = "";
    #cursor = 0;
    #acknowledged = 0; // the cursor that the server knows of
    #unacknowledged = 0; // bytes, about
    #ackTimer = 0;
    #acking = false;
    #ackMisses = 0; // acknowledgements in a row that failed
    #max = 0; // messages in an answer; 0: as many as the server likes
    #misses = 0; // answers in a row that were not to be had
    #since = 0; // when the server was first not heard; 0 if it was
    #seq = 0;
    #batch = null; // what is on its way up
    #most = BATCH_MESSAGES;
    #pumping = null;
    #receiving = true;
    #done = false;
    #endStream = null; // ends the stream, if there is one
    #streamHeardAt = 0;
    #open = new Set(); // ends each request that is under way
    #pauses = new Set(); // ends each pause

    constructor(host, queue) {
        this.#host = host;
        this.#queue = queue;
        // Called as a function: it belongs to the window.
        this.#fetch = host.options.fetch ?? globalThis.fetch;
    }

    async start() {
        const { address, options } = this.#host;
        let answer;
        try {
            answer = await this.#ask("GET", "poll", { path: address.path }, { within: options.openTimeout });
        } catch (error) {
            return this.#end(failure(`the server cannot be reached: ${error}`));
        }
        if (this.#done) return;
        const token = answer.headers.get("coracle-session");
        if (answer.status !== 200 || !token) return this.#end(refusal(answer));
        this.#token = token;
        this.opened = true;
        this.#host.opened(this);
        // One after the other, so that a number is never in two hands.
        while (this.#receiving) {
            if (this.#mayStream()) await this.#stream();
            else if (this.#host.options.transports.includes("polling")) await this.#poll();
            else await this.#miss();
        }
    }

    // --- Down: polls

    async #poll() {
        this.#move("polling");
        const query = { session_id: this.#token, cursor: this.#cursor, text: 1 };
        if (this.#max) query.max = this.#max;
        let answer;
        try {
            answer = await this.#ask("GET", "poll", query, { within: POLL });
            if (!this.#receiving) return;
            if (answer.status === 200) return this.#take(answer);
        } catch (error) {
            if (!this.#receiving) return;
            // One that was cut may have been too large for somebody on the way.
            if (error instanceof Cut) {
                this.#since = 0;
                this.#max = this.#max ? Math.max(1, this.#max >> 1) : 256;
            }
            return this.#miss();
        }
        await this.#refused(answer);
    }

    /** A whole answer. @throws {Cut} if it is not */
    #take(answer) {
        const messages = jsonOf(answer.text);
        const last = Number(answer.headers.get("coracle-cursor") ?? NaN);
        if (!Array.isArray(messages) || !isNumber(last) || last < messages.length) {
            throw new Cut("an answer that is not whole");
        }
        this.#since = this.#misses = 0;
        if (this.#max) this.#max = this.#max < 256 ? this.#max * 2 : 0;
        let number = last - messages.length;
        if (messages.length && number > this.#cursor) {
            return this.#end(failure("the server has left messages out"));
        }
        this.#acknowledged = this.#cursor;
        this.#unacknowledged = 0;
        for (const message of messages) {
            number += 1;
            if (!this.#deliver(number, messageOf(message))) return;
        }
        const closed = answer.headers.get("coracle-close");
        if (closed) this.#end(closeOf(closed));
    }

    /** @returns {boolean} whether it goes on */
    #deliver(number, data) {
        if (number > this.#cursor) {
            this.#cursor = number;
            this.#unacknowledged += data.length;
            this.#host.message(this, data);
        }
        return this.#receiving;
    }

    // --- Down: the stream

    #mayStream() {
        const { options, known } = this.#host;
        return options.transports.includes("sse") && Boolean(options.EventSource ?? globalThis.EventSource)
            && known.streamFrom <= now();
    }

    /** One stream, from the request to its end. */
    async #stream() {
        const { options, known, address } = this.#host;
        const EventSource = options.EventSource ?? globalThis.EventSource;
        const cursor = this.#cursor;
        const began = now();
        const opened = await new Promise((resolve) => {
            let source;
            let opened = false;
            let timer = 0;
            const over = () => {
                clearTimeout(timer);
                source?.close();
                this.#endStream = null;
                resolve(opened);
            };
            try {
                const query = queryOf({ session_id: this.#token, cursor: this.#cursor });
                source = new EventSource(`${address.base}/events${query}`,
                    { withCredentials: options.withCredentials });
            } catch {
                return over();
            }
            this.#endStream = over;
            timer = setTimeout(over, options.streamTimeout);
            const watch = () => {
                const left = this.#streamHeardAt + SILENCE - now();
                if (left <= 0) over();
                else timer = setTimeout(watch, left);
            };
            const heard = (react) => (event) => {
                if (this.#endStream !== over) return;
                this.#streamHeardAt = now();
                this.#since = 0;
                react(event);
            };
            const numbered = (read) => heard(({ data, lastEventId }) => {
                // A number, or a token and a number.
                const number = Number(lastEventId.slice(lastEventId.lastIndexOf(":") + 1));
                let message;
                try {
                    message = read(data);
                } catch {
                    return over();
                }
                // What is missing is asked for by the next request.
                if (!isNumber(number) || number > this.#cursor + 1) return over();
                this.#misses = 0;
                if (this.#deliver(number, message)) this.#acknowledgeSome();
            });
            source.addEventListener("message", numbered((data) => data));
            source.addEventListener("string", numbered((data) => String(JSON.parse(data))));
            source.addEventListener("binary", numbered(bytesOf));
            // The browser has an event of this name as well, which a proxy can bring about; it has no data.
            source.addEventListener("open", heard(({ data }) => {
                if (data === undefined || opened) return;
                opened = true;
                known.streamWorks = true;
                this.#acknowledged = Math.max(this.#acknowledged, cursor);
                this.#unacknowledged = 0;
                clearTimeout(timer);
                watch();
                this.#move("sse");
            }));
            source.addEventListener("close", heard(({ data }) => {
                const { code, reason } = Object(jsonOf(data));
                this.#end({ code: Number(code) || 1006, reason: String(reason ?? ""), clean: true });
            }));
            // It would come again by itself, but with the old cursor, and without saying why it failed.
            source.addEventListener("error", over);
        });
        if (!this.#receiving) return;
        if (opened) {
            // It was dropped on the way, or was silent, or the server wants to know what has arrived.
            if (this.#cursor === cursor && now() - began < STEADY_STREAM) await this.#miss();
            return;
        }
        // A poll says why, or gets through where a stream does not.
        known.streamFrom = now() + (known.streamWorks ? backoff(this.#misses + 2) : BLOCKED);
    }

    /** Tells the server what has arrived; while polling, the next poll does. */
    #acknowledgeSome() {
        const much = this.#cursor - this.#acknowledged >= ACK_MESSAGES || this.#unacknowledged >= ACK_BYTES;
        if (much && !this.#ackMisses) this.#acknowledge();
        else if (!this.#acking && !this.#ackTimer) this.#acknowledgeIn(ACK_TIME);
    }

    #acknowledgeIn(ms) {
        this.#ackTimer = setTimeout(() => this.#acknowledge(), ms);
    }

    async #acknowledge() {
        clearTimeout(this.#ackTimer);
        this.#ackTimer = 0;
        if (this.#acking || this.#done || this.#cursor === this.#acknowledged) return;
        this.#acking = true;
        const cursor = this.#cursor;
        this.#unacknowledged = 0;
        let answer;
        try {
            answer = await this.#ask("POST", "ack", { session_id: this.#token, cursor });
        } catch {
            // The next one says it again.
        }
        this.#acking = false;
        if (answer?.status === 204) {
            this.#ackMisses = 0;
            this.#acknowledged = Math.max(this.#acknowledged, cursor);
            const more = this.#receiving && this.transport === "sse" && this.#cursor > this.#acknowledged;
            if (more) this.#acknowledgeSome();
        } else if (this.#receiving) {
            // Meanwhile the server may end the stream, and the next one acknowledges.
            const asked = (answer && retryAfterOf(answer)) ?? 0;
            this.#acknowledgeIn(Math.max(asked, ACK_TIME) + backoff(this.#ackMisses, ACK_BACKOFF));
            this.#ackMisses += 1;
        }
    }

    // --- Up

    /** Sends what waits: one request at a time, and what comes meanwhile together in the next one. */
    pump() {
        this.#pumping ??= this.#sendAll().finally(() => { this.#pumping = null; });
    }

    async #sendAll() {
        while (!this.#done) {
            if (!this.#batch) {
                const items = this.#queue.take(this.#most, BATCH_BYTES);
                if (!items.length) return;
                this.#seq += 1;
                const body = bodyOf(items);
                // `unsure`: it may have arrived. `gone`: the session takes nothing any more.
                this.#batch = { seq: this.#seq, items, body, unsure: false, gone: false, tries: 0, since: 0 };
            }
            await this.#post(this.#batch);
        }
    }

    async #post(batch) {
        const cursor = this.#cursor;
        const { unsure } = batch;
        // Until an answer says that it was not taken.
        batch.unsure ||= !batch.gone;
        let answer;
        try {
            const query = { session_id: this.#token, seq: batch.seq, cursor };
            answer = await this.#ask("POST", "send", query, batch.body);
        } catch {
            // The same number again, and it is not delivered twice.
            return this.#later(batch);
        }
        if (this.#done) return;
        const { status } = answer;
        if (status === 200 || status === 202) {
            this.#acknowledged = Math.max(this.#acknowledged, cursor);
            this.#batch = null;
        } else if (status === 413 && batch.items.length > 1) {
            // Nothing of it was taken, so the number is free.
            this.#most = batch.items.length >> 1;
            this.#seq -= 1;
            this.#batch = null;
            this.#queue.putBack(batch.items);
        } else if (status === 413 || status === 400 || status === 415) {
            this.#seq -= 1;
            this.#batch = null;
            this.#host.trouble(this, new Error(`the server does not take a message: ${sentenceOf(answer)}`));
        } else if (status === 410) {
            // It is ending: what it has left to say comes by the poll or the stream, and behind that how it ended.
            batch.gone = true;
            batch.unsure = unsure;
            batch.since ||= now();
            if (this.#isTooLong(batch.since)) return;
            batch.tries += 1;
            await this.#pause(backoff(batch.tries));
        } else if (status === 401 || status === 403 || status === 409) {
            batch.unsure = unsure;
            this.#end(failure(`the session is over: ${sentenceOf(answer)}`, status));
        } else if (status === 503 || status === 429) {
            // It is there, and takes no more for now: that may last.
            batch.unsure = unsure;
            batch.since = 0;
            batch.tries += 1;
            await this.#pause(retryAfterOf(answer) ?? backoff(batch.tries));
        } else {
            // A proxy's answer, which says nothing of what has become of it.
            await this.#later(batch);
        }
    }

    async #later(batch) {
        if (this.#done) return;
        batch.since ||= now();
        if (this.#isTooLong(batch.since)) return;
        const { tries } = batch;
        batch.tries += 1;
        await this.#pause(backoff(tries));
    }

    // --- What goes wrong

    /** An answer to a poll that has no messages. */
    async #refused(answer) {
        const { status } = answer;
        if (status === 409) {
            // The server has not noticed yet that the last one is gone.
            await this.#miss(250);
        } else if (status === 429 || status === 503) {
            const wait = retryAfterOf(answer);
            await this.#miss(wait);
        } else if (status >= 400 && status < 500 && status !== 408) {
            this.#end(failure(`the session is over: ${sentenceOf(answer)}`, status));
        } else {
            await this.#miss();
        }
    }

    async #miss(wait) {
        if (this.#done) return;
        this.#since ||= now();
        if (this.#isTooLong(this.#since)) return;
        const misses = this.#misses;
        this.#misses += 1;
        await this.#pause(wait ?? backoff(misses));
    }

    /** Gives up where nothing has come through for too long. */
    #isTooLong(since) {
        if (now() - since <= this.#host.options.patience) return false;
        this.#end(failure("the server cannot be reached any more"));
        return true;
    }

    /** The network is there again, or somebody looks: what may be dead is asked anew. */
    nudge() {
        for (const end of [...this.#pauses]) end();
        if (this.transport === "sse" && now() - this.#streamHeardAt > STALE) this.#endStream?.();
    }

    // --- The end

    async close(code, reason) {
        this.#stopReceiving();
        await Promise.race([this.#flushed(), this.#pause(FLUSH)]);
        this.#farewell(code, reason);
    }

    async #flushed() {
        await this.#pumping;
        await this.#sendAll();
    }

    drop() {
        if (!this.#done) this.#farewell(1000, "");
        return this.unsent;
    }

    /** The page goes. @returns {End} */
    leave() {
        if (!this.#done) this.#farewell(1001, "the page is left");
        return failure("the page was left");
    }

    #farewell(code, reason) {
        const token = this.#token;
        this.#stop();
        if (!token) return;
        const { base } = this.#host.address;
        // It outlives the page. Nobody waits for the answer: without it the session ends by itself.
        const url = `${base}/close${queryOf({ session_id: token, code, reason })}`;
        const fetch = this.#fetch;
        fetch(url, this.#init("POST", { keepalive: true })).catch(() => {});
    }

    #end(end) {
        if (this.#done) return;
        this.#stop();
        this.#host.ended(this, end);
    }

    #stopReceiving() {
        this.#receiving = false;
        this.#endStream?.();
        clearTimeout(this.#ackTimer);
        for (const request of [...this.#open]) if (request.verb === "poll") request.abort.abort();
    }

    #stop() {
        this.#done = true;
        this.#stopReceiving();
        for (const request of [...this.#open]) request.abort.abort();
        for (const end of [...this.#pauses]) end();
        // What has surely not arrived goes with the next session.
        if (this.#batch && !this.#batch.unsure) this.unsent = this.#batch.items;
        this.#batch = null;
    }

    #move(transport) {
        if (this.transport === transport) return;
        this.transport = transport;
        this.#host.moved(this);
    }

    // --- Requests

    async #ask(method, verb, query, { within = POST, ...init } = {}) {
        const request = { verb, abort: new AbortController() };
        this.#open.add(request);
        const timer = setTimeout(() => request.abort.abort(), within);
        try {
            const fetch = this.#fetch;
            const answer = await fetch(`${this.#host.address.base}/${verb}${queryOf(query)}`,
                this.#init(method, { ...init, signal: request.abort.signal }));
            const { status, headers } = answer;
            try {
                return { status, headers, text: await answer.text() };
            } catch (error) {
                // Nobody but the server puts this one there.
                throw headers.has("coracle-cursor") ? new Cut(String(error)) : error;
            }
        } finally {
            clearTimeout(timer);
            this.#open.delete(request);
        }
    }

    #init(method, init) {
        const credentials = this.#host.options.withCredentials ? "include" : "same-origin";
        return { method, credentials, cache: "no-store", redirect: "error", ...init };
    }

    #pause(ms) {
        if (this.#done) return Promise.resolve();
        return new Promise((resolve) => {
            const end = () => {
                clearTimeout(timer);
                this.#pauses.delete(end);
                resolve();
            };
            const timer = setTimeout(end, ms);
            this.#pauses.add(end);
        });
    }
}

/** The head of an answer came, and not all of its body. */
class Cut extends Error {}

// --- Parts ---------------------------------------------------------------------------------------

/** What waits to be sent, within bounds. */
class Queue {
    #items = [];
    #held = [];
    #bytes = 0;
    #limits;

    constructor(limits) {
        this.#limits = limits;
    }

    get length() {
        return this.#items.length;
    }

    push(item) {
        const { messages, bytes } = this.#limits;
        if (this.#items.length >= messages || this.#bytes + item.size > bytes) return false;
        this.#append([item]);
        return true;
    }

    // What was taken may come back, bound or no bound.
    #append(items) {
        for (const item of items) this.#bytes += item.size;
        this.#items.push(...items);
    }

    putBack(items) {
        for (const item of items) this.#bytes += item.size;
        this.#items.unshift(...items);
    }

    /** The first ones, at least one if there is one. */
    take(messages, bytes = Infinity) {
        let count = 0;
        let size = 0;
        while (count < this.#items.length && count < messages) {
            size += this.#items[count].size;
            if (count && size > bytes) {
                size -= this.#items[count].size;
                break;
            }
            count += 1;
        }
        this.#bytes -= size;
        return this.#items.splice(0, count);
    }

    /** Sets aside what waits, so that what comes until `release` goes before it. */
    hold() {
        this.#held = this.take(Infinity);
    }

    release() {
        this.#append(this.#held.splice(0));
    }
}

/**
 * How long to wait after so many failures: any part of a time that doubles, so that those who were cut off
 * together do not come back together.
 * @param {number} failures
 * @param {{base: number, cap: number}} [bounds] of a request that is repeated within a session
 * @returns {number} milliseconds
 */
export function backoff(failures, { base, cap } = { base: 100, cap: 2_000 }) {
    return Math.random() * Math.min(cap, base * 2 ** failures);
}

/**
 * The wait before the next connection.
 * @param {End} end
 * @param {number} failures
 * @param {{base: number, cap: number}} bounds
 * @returns {number} milliseconds
 */
export function waitFor({ code, retryAfter }, failures, bounds) {
    // All have been told the same number.
    if (retryAfter !== undefined) return retryAfter + backoff(Math.max(failures, 1), bounds);
    // 1012: who restarts needs a moment, and all come back. 1013: who is overloaded needs more than that.
    if (code === 1012) return backoff(Math.max(failures, 2), bounds);
    if (code === 1013) return bounds.base + backoff(Math.max(failures, 4), bounds);
    return backoff(failures, bounds);
}

// What is known of the ways to each server, for as long as the page lives.
const known = new Map();

function knownOf(host) {
    if (!known.has(host)) {
        known.set(host, { websocketWorks: false, websocketFrom: 0, streamWorks: false, streamFrom: 0 });
    }
    return known.get(host);
}

function settle(options) {
    for (const name of Object.keys(options)) {
        if (!(name in DEFAULTS)) {
            throw new TypeError(`there is no option ${name}: ${Object.keys(DEFAULTS).join(", ")}`);
        }
    }
    const settled = { ...DEFAULTS };
    for (const [name, value] of Object.entries(options)) {
        if (value === undefined) continue;
        const isGroup = name === "backoff" || name === "queue" || name === "names";
        settled[name] = isGroup ? { ...DEFAULTS[name], ...value } : value;
    }
    return settled;
}

function locate(url, options) {
    const page = globalThis.location?.href;
    const http = new URL(url, page);
    if (!/^(ws|http)s?:$/.test(http.protocol)) throw new TypeError(`${http.protocol} is no protocol for this`);
    http.hash = "";
    http.protocol = http.protocol.replace("ws", "http");
    const websocket = new URL(http);
    websocket.protocol = http.protocol.replace("http", "ws");
    const base = new URL(options.base, http);
    return {
        websocket,
        base: `${base.origin}${base.pathname}`.replace(/\/+$/, ""),
        path: options.path ?? `${http.pathname}${http.search}`,
    };
}

// Not URLSearchParams, for which a space is a plus.
function queryOf(parameters) {
    const pairs = Object.entries(parameters).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
    return `?${pairs.join("&")}`;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

function itemOf(data) {
    if (typeof data === "string") return { data, size: encoder.encode(data).length };
    if (ArrayBuffer.isView(data)) {
        const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
        return { data: bytes, size: bytes.length };
    }
    if (data instanceof ArrayBuffer) return { data: new Uint8Array(data.slice(0)), size: data.byteLength };
    throw new TypeError("a message is a string, an ArrayBuffer or a view of one");
}

/** The body of a POST: one message as it is, several as JSON. */
function bodyOf(items) {
    if (items.length === 1) {
        const [{ data }] = items;
        const type = typeof data === "string" ? "text/plain;charset=utf-8" : "application/octet-stream";
        return { body: data, headers: { "Content-Type": type } };
    }
    const messages = items.map(({ data }) => (typeof data === "string" ? wellFormed(data)
        : { $binary: base64Of(data) }));
    return { body: JSON.stringify(messages), headers: { "Content-Type": "application/json" } };
}

// Half a character is no UTF-8; WebSocket would replace it as well.
function wellFormed(text) {
    return decoder.decode(encoder.encode(text));
}

function base64Of(bytes) {
    let text = "";
    // In pieces: so many arguments has a function.
    for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
    return btoa(text);
}

function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
}

function messageOf(message) {
    if (typeof message === "string") return message;
    return typeof message?.$binary === "string" ? bytesOf(message.$binary) : JSON.stringify(message);
}

function jsonOf(text) {
    try {
        return JSON.parse(text);
    } catch {
        return undefined;
    }
}

/** @returns {Envelope | undefined} */
function envelopeOf(text) {
    if (!text.startsWith("{")) return undefined;
    const envelope = jsonOf(text);
    return typeof envelope?.type === "string" ? envelope : undefined;
}

function newRoom() {
    return {
        epoch: undefined, // which numbers its messages have
        seen: undefined, // the last one we have had
        after: undefined, // the one after which the next connection goes on
        asked: false, // the server is to say whether that is all
        held: null, // what has come before it has said so
        heldSize: 0,
        timer: 0,
    };
}

/** Whether a message with this id is the room's next one, which it is then. */
function isNew(room, id) {
    if (room.seen !== undefined && id <= room.seen) return false;
    room.seen = room.after = id;
    return true;
}

function isNumber(value) {
    return Number.isSafeInteger(value) && value >= 0;
}

/** As many of its bytes as fit, cut at a character. */
function cutText(text, bytes) {
    const encoded = encoder.encode(text);
    if (encoded.length <= bytes) return text;
    let end = bytes;
    while (end > 0 && (encoded[end] & 0xc0) === 0x80) end -= 1;
    return decoder.decode(encoded.subarray(0, end));
}

// --- Ends ----------------------------------------------------------------------------------------

/** @returns {End} */
function failure(reason, status) {
    return status === undefined ? { code: 1006, reason, clean: false } : { code: 1006, reason, clean: false, status };
}

/** An answer that is no session. @returns {End} */
function refusal(answer) {
    const { status } = answer;
    const reason = status === 200 ? "what answers is no coracle" : sentenceOf(answer);
    const codes = { 401: 1008, 403: 1008, 429: 1013, 503: 1013 };
    return { code: codes[status] ?? 1006, reason, clean: false, status, retryAfter: retryAfterOf(answer) };
}

/** What an error says of itself. */
function sentenceOf({ status, text }) {
    const { error } = Object(jsonOf(text));
    return typeof error === "string" ? error : `HTTP ${status}`;
}

/** In milliseconds; undefined if there is none. */
function retryAfterOf({ headers }) {
    const said = headers.get("retry-after");
    if (said === null || said === undefined) return undefined;
    const wait = /^\s*\d+\s*$/.test(said) ? Number(said) * 1000 : Date.parse(said) - Date.now();
    return Number.isNaN(wait) ? undefined : Math.min(Math.max(wait, 0), LONGEST_WAIT);
}

/** `<code> <reason, percent-encoded>`. @returns {End} */
function closeOf(header) {
    const [, code, encoded] = /^(\d+) ?(.*)$/.exec(header) ?? [];
    let reason = encoded ?? "";
    try {
        reason = decodeURIComponent(reason);
    } catch {
        // Then as it is.
    }
    return { code: Number(code) || 1006, reason, clean: true };
}

/** An error of somebody else's code: where errors go that nobody has caught. */
function report(error) {
    if (typeof globalThis.reportError === "function") globalThis.reportError(error);
    else console.error(error);
}
