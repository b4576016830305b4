// The page's side of the chat. What others have written is only ever set as text, never as HTML.
import { connect } from "/coracle.js";

const $ = (id) => document.getElementById(id);

const ROOM_PATH = "/r/";
const SHOWN = 500; // lines; older ones go
const TOGETHER = 5 * 60 * 1000; // ms between two messages that share one name
const PENDING = 20; // messages that wait to be sent while there is no connection
const ANSWER = 10 * 1000; // ms after which a connection that does not answer is given up
const FULL = 15 * 1000; // ms until a room that does not let us in is asked again

// --- What this tab remembers ---------------------------------------------------------------------

// A name belongs to its tab, so that two tabs can be two people; a new tab begins with the last one chosen.
// Storage may be forbidden, and then nothing is remembered.
function recall(area, key) {
    try {
        return window[area].getItem(key);
    } catch {
        return null;
    }
}

function remember(area, key, value) {
    try {
        window[area].setItem(key, value);
    } catch {
        // Then not.
    }
}

let name = recall("sessionStorage", "name") ?? recall("localStorage", "name") ?? "";

function setName(chosen) {
    name = chosen;
    remember("sessionStorage", "name", chosen);
    remember("localStorage", "name", chosen);
}

// Which members this tab has been, also before it was reloaded: their messages are its own.
const selves = JSON.parse(recall("sessionStorage", "selves") ?? "[]");

function addSelf(self) {
    if (selves.includes(self)) return;
    selves.push(self);
    if (selves.length > 50) selves.shift();
    remember("sessionStorage", "selves", JSON.stringify(selves));
}

// --- The door ------------------------------------------------------------------------------------

function tidy(text) {
    return text.normalize("NFC").split(/\s+/).filter(Boolean).join(" ");
}

function openDoor() {
    $("door").hidden = false;
    $("door-name").value = name;
    (name ? $("door-room") : $("door-name")).focus();
    $("door-form").addEventListener("submit", (event) => {
        event.preventDefault();
        const room = tidy($("door-room").value).replaceAll("/", "-");
        const chosen = tidy($("door-name").value);
        if (room && chosen) {
            setName(chosen);
            location.href = ROOM_PATH + encodeURIComponent(room);
        }
    });
}

// --- What is shown -------------------------------------------------------------------------------

const members = new Map(); // session → name
const gone = new Map(); // session → the line that says so: if it comes again it has changed its name
let self = null; // our own session
let unseen = 0; // messages below what is seen
let unread = 0; // messages while the tab is hidden
let last = null; // the last message that is shown, for grouping
let following = true; // the lines are at their end, and stay there
let roomName = "";

function element(tag, className, text) {
    const made = document.createElement(tag);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
}

function isolated(text) {
    const made = element("bdi", "", text);
    made.dir = "auto";
    return made;
}

// The same name has the same colour everywhere: FNV-1a, and the end of MurmurHash3, because names are short.
function hue(text) {
    let hash = 0x811c9dc5;
    for (const char of text) hash = Math.imul(hash ^ char.codePointAt(0), 0x01000193);
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    return String(((hash ^ (hash >>> 16)) >>> 0) % 360);
}

function face(of) {
    const made = element("span", "face", [...of][0].toUpperCase());
    made.setAttribute("aria-hidden", "true");
    made.style.setProperty("--hue", hue(of));
    return made;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });

function timeOf(at) {
    const made = element("time", "", clock.format(at));
    made.dateTime = new Date(at).toISOString();
    made.title = calendar.format(at);
    return made;
}

function messageOf(line, mine) {
    const more = last && last.mine === mine && (mine || (last.from === line.from && last.name === line.name))
        && line.at - last.at < TOGETHER;
    last = { from: line.from, name: line.name, at: line.at, mine };
    const item = element("li", "message");
    item.classList.toggle("mine", mine);
    item.classList.toggle("more", Boolean(more));
    item.style.setProperty("--hue", hue(line.name));
    const said = element("div", "said");
    if (!mine && !more) {
        item.append(face(line.name));
        const by = element("div", "by");
        by.append(isolated(line.name));
        said.append(by);
    } else {
        said.append(element("span", "unseen", mine ? "You: " : `${line.name}: `));
    }
    const words = element("div", "words", line.text);
    words.dir = "auto";
    words.append(timeOf(line.at));
    said.append(words);
    item.append(said);
    return item;
}

function atEnd() {
    const log = $("log");
    return log.scrollHeight - log.scrollTop - log.clientHeight < 48;
}

function toEnd() {
    $("log").scrollTop = $("log").scrollHeight;
    unseen = 0;
    following = true;
    showNewest();
}

function showNewest() {
    $("newest").hidden = following;
    $("newest").textContent = unseen ? `${unseen} new ↓` : "To the newest ↓";
}

// Adds a line before those of ours that are still on their way. News are what somebody may have missed.
function add(item, news) {
    $("empty").hidden = true;
    const first = pending[0]?.item;
    $("lines").insertBefore(item, first?.isConnected ? first : null);
    while ($("lines").childElementCount > SHOWN) $("lines").firstElementChild.remove();
    item.classList.toggle("fresh", news);
    if (news && !following) unseen += 1;
    if (news && document.hidden) unread += 1;
    if (following) toEnd();
    else showNewest();
    showTitle();
}

function addNote(className, ...parts) {
    last = null;
    const item = element("li", className);
    if (className === "gap") item.append(element("span", "", parts.join("")));
    else item.append(...parts);
    add(item, false);
    return item;
}

function showTitle() {
    document.title = `${unread ? `(${unread}) ` : ""}${roomName} · coracle chat`;
}

function showMembers() {
    $("count").textContent = String(members.size);
    $("show-people").title = `${members.size} here`;
    $("people-title").textContent = `Here now: ${members.size}`;
    const sorted = [...members].sort(([one, a], [two, b]) => (two === self) - (one === self) || a.localeCompare(b));
    $("members").replaceChildren(...sorted.map(([session, of]) => {
        const item = element("li", "");
        item.append(face(of), isolated(of));
        if (session === self) item.append(element("span", "you", "you"));
        return item;
    }));
}

// --- What the server says ------------------------------------------------------------------------

let epoch = null; // which numbers the messages have
let seen = 0; // the number of the last message that is shown

function onMessage(line, news) {
    if (line.seq <= seen) return;
    if (seen && line.seq > seen + 1) addNote("gap", "some messages are missing here");
    seen = line.seq;
    const mine = selves.includes(`${epoch}/${line.from}`);
    // Ours come back in the order in which we have sent them.
    if (mine && pending[0]?.text === line.text) pending.shift().item.remove();
    add(messageOf(line, mine), news && !mine);
}

const handlers = {
    "chat.welcome"(welcome) {
        if (epoch !== null && epoch !== welcome.epoch) {
            addNote("gap", "the room has begun anew");
            seen = 0;
        }
        epoch = welcome.epoch;
        self = welcome.you;
        addSelf(`${epoch}/${self}`);
        members.clear();
        for (const member of welcome.members) members.set(member.session, member.name);
        showMembers();
        // The history is no news, unless it has come about while we were away.
        const away = seen > 0;
        for (const line of welcome.history) onMessage(line, away);
        closeWho();
        online();
        // What has been lost on its way is sent again; what has arrived is in the history.
        for (const message of pending) {
            if (!message.sent) post(message);
        }
    },
    "chat.message": (line) => onMessage(line, true),
    "chat.joined"(member) {
        const before = gone.get(member.session);
        members.set(member.session, member.name);
        showMembers();
        gone.delete(member.session);
        if (before) before.item.replaceChildren(isolated(before.name), " is now ", isolated(member.name));
        else addNote("event", isolated(member.name), " has come");
    },
    "chat.left"(member) {
        if (!members.delete(member.session)) return;
        showMembers();
        gone.set(member.session, { name: member.name, item: addNote("event", isolated(member.name), " has gone") });
        if (gone.size > 50) gone.delete(gone.keys().next().value);
    },
    "chat.error"({ code, text }) {
        if (code === "bad_name" || code === "name_too_long") {
            askName(text);
        } else if (code === "room_full" || code === "too_many_rooms" || code === "cannot_join") {
            // Closed before it is said: nothing is to come again by itself.
            client.close();
            away(text[0].toUpperCase() + text.slice(1), FULL, () => client.reconnect());
        } else {
            // What was last sent and not yet answered.
            const refused = pending.shift();
            refused?.item.remove();
            if (refused && !$("text").value) compose(refused.text);
            addNote("event", text);
        }
    },
};

// --- The connection ------------------------------------------------------------------------------

const WAYS = { websocket: "by WebSocket", sse: "by an event stream", polling: "by polling" };

let client = null;
let tickTimer = 0;
let answerTimer = 0;

function send(type, payload) {
    // What waits for a connection is ours to keep: it is sent after the server has said who is here.
    if (client.state === "open") client.emit(type, payload);
}

// Gives the connection up if nothing comes for a while: a lost network tells nobody.
function expectAnswer() {
    clearTimeout(answerTimer);
    answerTimer = setTimeout(() => client.reconnect(), ANSWER);
}

function start() {
    client = connect(location.href);
    setStatus(false, "connecting");
    client.on("open", () => {
        send("chat.join", { name });
        expectAnswer();
    });
    client.on("typed", ({ type, payload }) => {
        clearTimeout(answerTimer);
        handlers[type]?.(payload);
        if (client.state === "open" && pending.some((waiting) => waiting.sent)) expectAnswer();
    });
    client.on("transport", (transport) => { $("status").title = WAYS[transport]; });
    client.on("close", unsend);
    client.on("state", ({ state, delay, end }) => {
        clearTimeout(tickTimer);
        clearTimeout(answerTimer);
        if (state === "connecting") setStatus(false, "connecting");
        if (state === "waiting" || state === "closed") {
            away(end.clean && end.reason ? `The server says: ${end.reason}` : "No connection", delay, () => {});
        }
    });
}

function online() {
    setStatus(true, "connected");
    $("banner").hidden = true;
}

// What was on its way may have arrived or not; the history will say.
function unsend() {
    for (const message of pending) message.sent = false;
}

// Says that there is no connection, and counts the seconds.
function away(why, delay, then) {
    clearTimeout(tickTimer);
    setStatus(false, "not connected");
    $("banner").hidden = false;
    $("countdown").textContent = "";
    // Said once; nobody wants to hear the seconds.
    $("why").textContent = `${why}.`;
    const at = Date.now() + delay;
    const tick = () => {
        const left = Math.ceil((at - Date.now()) / 1000);
        if (left <= 0) return then();
        $("countdown").textContent = `Next try in ${left} s.`;
        tickTimer = setTimeout(tick, at - Date.now() - (left - 1) * 1000);
    };
    if (delay !== undefined) tick();
}

function setStatus(isOnline, text) {
    $("status").classList.toggle("online", isOnline);
    $("people").classList.toggle("stale", !isOnline);
    $("status-text").textContent = text;
}

function hurry() {
    if (client.state === "waiting" || client.state === "closed") client.reconnect();
}

// --- What is typed -------------------------------------------------------------------------------

const pending = []; // { text, item, sent }: ours, of which the server has not said that they have arrived

function post(message) {
    if (client?.state === "open" && self !== null) {
        message.sent = true;
        send("chat.message", { text: message.text });
        expectAnswer();
    }
}

function say(text) {
    const before = last;
    const item = messageOf({ from: self, name, at: Date.now(), text }, true);
    last = before;
    item.classList.add("waiting");
    item.querySelector("time").textContent = "sending";
    $("empty").hidden = true;
    $("lines").append(item);
    toEnd();
    const message = { text, item, sent: false };
    pending.push(message);
    if ($("status").classList.contains("online")) post(message);
}

function compose(text) {
    $("text").value = text;
    $("text").dispatchEvent(new Event("input"));
}

function fit() {
    const text = $("text");
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight + 2}px`;
    const left = text.maxLength - text.value.length;
    $("left").textContent = left <= 100 ? `${left} left` : "";
    if (following) toEnd();
}

function openRoom(room) {
    roomName = room;
    $("room").textContent = room;
    showTitle();
    $("chat").hidden = false;
    $("composer").addEventListener("submit", (event) => {
        event.preventDefault();
        // As the server will have it, so that it is recognised.
        const text = $("text").value.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/g, "").trim();
        if (!text || pending.length >= PENDING) return;
        say(text);
        compose("");
        $("text").focus();
    });
    $("text").addEventListener("input", fit);
    $("text").addEventListener("keydown", (event) => {
        // Enter also ends the composition of a character.
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            $("composer").requestSubmit();
        }
    });
    $("log").addEventListener("scroll", () => {
        following = atEnd();
        if (following) unseen = 0;
        showNewest();
    });
    // The keyboard of a phone comes and goes.
    new ResizeObserver(() => { if (following) toEnd(); }).observe($("log"));
    $("newest").addEventListener("click", toEnd);
    $("retry").addEventListener("click", hurry);
    document.addEventListener("visibilitychange", () => {
        if (document.hidden) return;
        unread = 0;
        showTitle();
    });
    $("show-people").addEventListener("click", () => showPeople(!$("chat").classList.contains("with-people")));
    $("log").addEventListener("click", () => showPeople(false));
    document.addEventListener("keydown", (event) => {
        if (event.key === "Escape") showPeople(false);
    });
    $("rename").addEventListener("click", () => askName(""));
    $("who-cancel").addEventListener("click", () => $("who").close());
    $("who").addEventListener("cancel", (event) => {
        if (!self) event.preventDefault();
    });
    $("who-form").addEventListener("submit", (event) => {
        event.preventDefault();
        const chosen = tidy($("who-name").value);
        if (!chosen) return;
        setName(chosen);
        if (!client) return start();
        send("chat.join", { name });
        hurry();
    });
    if (name) {
        start();
        $("text").focus();
    } else {
        askName("");
    }
}

function showPeople(shown) {
    $("chat").classList.toggle("with-people", shown);
    $("show-people").setAttribute("aria-expanded", String(shown));
}

function askName(error) {
    showPeople(false);
    $("who-error").textContent = error;
    $("who-name").value = name;
    $("who-cancel").hidden = !self;
    if (!$("who").open) $("who").showModal();
    $("who-name").select();
}

function closeWho() {
    if ($("who").open) $("who").close();
    if (matchMedia("(pointer: fine)").matches) $("text").focus();
}

// --- Which of both -------------------------------------------------------------------------------

if (location.pathname.startsWith(ROOM_PATH)) {
    openRoom(decodeURIComponent(location.pathname.slice(ROOM_PATH.length)));
} else {
    openDoor();
}
