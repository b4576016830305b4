"""Two people in the example chat, in headless Chromium: chat.py [--blocked] SERVER BROWSER PROFILE [PICTURES]

Starts the server itself, because it also has to go away and come back. Drives the pages by the DevTools
protocol over a pipe. With a directory for PICTURES it leaves screenshots there, as a phone and a desk show it.

With --blocked nobody has a WebSocket that opens: the server needs its fallbacks.
"""

import base64
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

arguments = [it for it in sys.argv[1:] if it != "--blocked"]
is_blocked = len(arguments) < len(sys.argv) - 1
server_path, browser, profile = arguments[:3]
pictures = pathlib.Path(arguments[3]) if len(arguments) > 3 else None
PATIENCE = 30


def check(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")
    print(f"ok: {what}")


class Server:
    def __init__(self, address="127.0.0.1:0"):
        self.process = subprocess.Popen([server_path, address], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on http://"):
            sys.exit(f"failed: the server says {line!r}")
        self.url = line.removeprefix("listening on ").strip()
        self.address = self.url.removeprefix("http://").rstrip("/")

    def stop(self):
        self.process.terminate()
        return self.process.wait(timeout=PATIENCE)


class Browser:
    """The DevTools protocol: JSON texts that end in a zero byte, by the descriptors 3 and 4."""

    def __init__(self):
        to_browser, self.write_end = os.pipe()
        read_end, from_browser = os.pipe()
        command = [
            browser,
            "--headless",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        if os.geteuid() == 0:
            # Chromium's sandbox does not work for root, as in most containers.
            command.insert(1, "--no-sandbox")

        def place():
            # Far away first: one of them may be 3 or 4 itself.
            reading, writing = os.dup2(to_browser, 100), os.dup2(from_browser, 101)
            os.dup2(reading, 3), os.dup2(writing, 4)

        # It has something to say about every missing bus; only what the pages show counts.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=place,
        )
        os.close(to_browser), os.close(from_browser)
        self.ids = itertools.count(1)
        self.answers = {}
        self.complaints = []
        self.arrived = threading.Condition()
        threading.Thread(target=self.listen, args=[read_end], daemon=True).start()

    def listen(self, read_end):
        with os.fdopen(read_end, "rb") as stream:
            text = b""
            while chunk := stream.read1(1 << 16):
                *texts, text = (text + chunk).split(b"\0")
                with self.arrived:
                    for message in map(json.loads, texts):
                        self.heed(message)
                    self.arrived.notify_all()

    def heed(self, message):
        params = message.get("params", {})
        if "id" in message:
            self.answers[message["id"]] = message
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif message["method"] == "Log.entryAdded":
            # That it could not connect while there was no server is no fault of the page.
            if "ERR_CONNECTION_REFUSED" not in params["entry"]["text"]:
                self.complaints.append(params["entry"])

    def call(self, method, session=None, **params):
        message = {"id": next(self.ids), "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        with self.arrived:
            there = self.arrived.wait_for(lambda: message["id"] in self.answers, PATIENCE)
            if not there:
                sys.exit(f"failed: the browser does not answer {method}")
            answer = self.answers.pop(message["id"])
        if "error" in answer:
            sys.exit(f"failed: {method}: {answer['error']}")
        return answer["result"]

    def page(self):
        # A context of its own: another person with another memory.
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        return Page(self, session)

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Page:
    def __init__(self, of, session):
        self.of, self.session = of, session
        for domain in ["Page", "Runtime", "Log"]:
            self.call(f"{domain}.enable")
        # Only one page has the focus, and the others would be taken for hidden.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.desk()

    def call(self, method, **params):
        return self.of.call(method, self.session, **params)

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            sys.exit(f"failed: {script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, what, script):
        deadline = time.monotonic() + PATIENCE
        while not self.run(script):
            if time.monotonic() > deadline:
                print(self.run("document.body.innerText"), file=sys.stderr)
                check(False, what)
            time.sleep(0.02)
        check(True, what)

    def before(self, script):
        """Runs it before whatever a page has."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def go(self, url):
        self.call("Page.navigate", url=url)

    def fill(self, field, text):
        self.run(f"document.querySelector('{field}').focus(), document.querySelector('{field}').select()")
        self.call("Input.insertText", text=text)

    def enter(self):
        for type in ["keyDown", "keyUp"]:
            self.call("Input.dispatchKeyEvent", type=type, key="Enter", code="Enter", text="\r",
                      windowsVirtualKeyCode=13)

    def say(self, text):
        self.fill("#text", text)
        self.enter()

    def click(self, what):
        self.run(f"document.querySelector('{what}').click()")

    def connected(self, who):
        self.until(f"{who} is connected", "document.querySelector('#status')?.className === 'online'")

    def reads(self, what, text):
        """Waits until a line has exactly this text, beside the time."""
        script = f"""[...document.querySelectorAll('.words:not(.waiting *)')].some((words) =>
            words.firstChild.data === {json.dumps(text)})"""
        self.until(what, script)

    def notes(self):
        return self.run("[...document.querySelectorAll('.event, .gap')].map((it) => it.textContent)")

    def noted(self, what, text):
        self.until(what, f"""[...document.querySelectorAll('.event, .gap')].some((it) =>
            it.textContent === {json.dumps(text)})""")

    def here(self, what, names):
        self.until(what, f"""JSON.stringify([...document.querySelectorAll('#members bdi')]
            .map((it) => it.textContent).sort()) === {json.dumps(json.dumps(names, separators=(',', ':')))}""")

    def size(self, width, height, scale, mobile):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale, mobile=mobile)
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def phone(self):
        self.size(360, 720, 2, True)

    def desk(self):
        self.size(1200, 800, 1, False)

    def picture(self, name):
        """On a phone and on a desk, by day and by night."""
        if pictures is None:
            return
        for place, put in [("phone", self.phone), ("desk", self.desk)]:
            put()
            for scheme in ["light", "dark"]:
                self.call("Emulation.setEmulatedMedia",
                          features=[{"name": "prefers-color-scheme", "value": scheme}])
                # Two frames: one to lay out, one to paint.
                self.call("Runtime.evaluate", awaitPromise=True, expression="""new Promise((done) =>
                    requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 250))))""")
                shot = self.call("Page.captureScreenshot", format="png")
                (pictures / f"{name}-{place}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
        self.call("Emulation.setEmulatedMedia", features=[])


# What a page finds in place of WebSocket.
HANGS = "window.WebSocket = class { close() {} }"
FAILS = """window.WebSocket = class {
    constructor() { setTimeout(() => this.onclose({ code: 1006, reason: '', wasClean: false })); }
    close() {}
}"""


def blocked(server, browser):
    """One of them learns at once that there is no WebSocket, one has to wait, and one has one."""
    fails, hangs, free = browser.page(), browser.page(), browser.page()
    fails.before(FAILS)
    hangs.before(HANGS)
    room = f"{server.url}r/behind%20a%20proxy"
    people = [(fails, "Fay"), (hangs, "Hal"), (free, "Fred")]
    for page, name in people:
        page.go(room)
        page.until(f"{name} is asked for a name", "document.querySelector('#who')?.open")
        page.fill("#who-name", name)
        page.enter()
    for page, name in people:
        page.connected(name)
        page.here(f"{name} sees all three", ["Fay", "Fred", "Hal"])
    ways = ["an event stream", "an event stream", "WebSocket"]
    for (page, name), way in zip(people, ways):
        page.until(f"{name} is there by {way}", f"document.querySelector('#status').title === 'by {way}'")
    for number in range(10):
        for page, name in people:
            page.say(f"{name} says {number}")
    for page, name in people:
        page.until(f"{name} has all thirty", "document.querySelectorAll('.message:not(.waiting)').length === 30")
    lines = [page.run("[...document.querySelectorAll('.words')].map((it) => it.firstChild.data)") for page, _ in people]
    check(lines[0] == lines[1] == lines[2], "and all have the same in the same order")
    check(sorted(lines[0]) == sorted(f"{name} says {n}" for _, name in people for n in range(10)), "each of it once")
    check(all(not page.run("document.querySelectorAll('.gap').length") for page, _ in people), "and nothing is missing")

    # Who leaves a page has gone at once, and not when the session expires.
    hangs.go("about:blank")
    fails.noted("Hal has gone", "Hal has gone")

    check(server.stop() == 0, "the server stops by SIGTERM with status 0")
    fails.until("Fay is told", "!document.querySelector('#banner').hidden")
    fails.say("Is anybody there?")
    again = Server(server.address)
    try:
        for page, name in [(fails, "Fay"), (free, "Fred")]:
            page.click("#retry")
            page.connected(f"{name}, again,")
        free.reads("what waited is delivered", "Is anybody there?")
        check(fails.run("document.querySelector('#status').title") != "by WebSocket", "still without a WebSocket")
    finally:
        again.stop()


def talk(server, browser):
    ann, bea = browser.page(), browser.page()

    # Ann comes by the front door.
    ann.go(server.url)
    ann.until("the door asks for a room and a name", "document.querySelector('#door')?.hidden === false")
    ann.picture("door")
    ann.fill("#door-room", "boats & más")
    ann.fill("#door-name", "  Ann  ")
    ann.enter()
    ann.until("the room has an address", "location.pathname === '/r/boats%20%26%20m%C3%A1s'")
    ann.connected("Ann")
    ann.until("an empty room says so", '''(({ top, bottom }) => top >= 0 && bottom <= innerHeight && bottom > top)
        (document.querySelector('#empty').getBoundingClientRect())''')
    ann.here("Ann is here", ["Ann"])
    ann.picture("empty")

    # Bea by the address, and is asked for her name.
    room = ann.run("location.href")
    bea.go(room)
    bea.until("Bea is asked who she is", "document.querySelector('#who')?.open")
    bea.picture("name")
    bea.fill("#who-name", "Bea\u202E")
    bea.enter()
    bea.until("a name with something invisible is refused", "document.querySelector('#who-error').textContent")
    bea.fill("#who-name", "Bea")
    bea.enter()
    bea.connected("Bea")
    ann.noted("Ann sees Bea come", "Bea has come")
    for page, who in [(ann, "Ann"), (bea, "Bea")]:
        page.here(f"{who} sees both", ["Ann", "Bea"])

    ann.say("hello")
    bea.reads("Bea reads what Ann says", "hello")
    bea.say("hello yourself\u2026")
    ann.reads("Ann reads what Bea says", "hello yourself\u2026")
    ann.until("her own is on her own side", "document.querySelectorAll('.mine:not(.waiting)').length === 1")

    hostile = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'><b>bold</b> &amp;"
    ann.say(hostile)
    bea.reads("a script tag is shown as text", hostile)
    check(bea.run("document.querySelectorAll('#lines script, #lines img, #lines b').length") == 0, "and is none")
    check(bea.run("window.pwned") is None, "and is not run")
    foreign = browser.page()
    foreign.go(room)
    foreign.until("a third page", "document.querySelector('#who')?.open")
    foreign.run("document.body.append(Object.assign(document.createElement('script'), { textContent: 'pwned = 3' }))")
    check(foreign.run("window.pwned") is None, "not even one that has got into the page")
    foreign.go("about:blank")
    browser.complaints = [it for it in browser.complaints if "Content Security Policy" not in it.get("text", "")]

    # One reloads.
    bea.call("Page.reload")
    ann.noted("Ann sees Bea go", "Bea has gone")
    ann.until("and come again", """[...document.querySelectorAll('.event')].slice(-2)
        .map((it) => it.textContent).join() === 'Bea has gone,Bea has come'""")
    bea.connected("Bea, again, without being asked for her name,")
    for text in ["hello", "hello yourself\u2026", hostile]:
        bea.reads("Bea has the history again", text)
    check(bea.run("document.querySelectorAll('.mine').length") == 1, "and knows which of it is hers")
    ann.here("Bea is here once", ["Ann", "Bea"])

    ann.click("#rename")
    ann.fill("#who-name", "Anna")
    ann.enter()
    bea.noted("Bea sees Ann's new name", "Ann is now Anna")
    bea.here("also in the list", ["Anna", "Bea"])

    # What is long wraps, and nothing is wider than a phone.
    bea.phone()
    ann.say("A word: " + "Donaudampfschifffahrtsgesellschaft" * 5 + "\nand a second line")
    ann.say("https://example.com/" + "0123456789" * 12)
    bea.reads("a long word", "https://example.com/" + "0123456789" * 12)
    check(bea.run("document.documentElement.scrollWidth <= 360 && [...document.querySelectorAll('.said')]"
                  ".every((it) => it.getBoundingClientRect().right <= 360)"), "a phone is wide enough")

    # Whoever reads what was said before is left there.
    for number in range(8):
        ann.say(f"The tide comes in at {number + 3} o\u2019clock.")
    bea.reads("the last line", "The tide comes in at 10 o\u2019clock.")
    end = "Math.abs(log.scrollHeight - log.clientHeight - log.scrollTop) < 2"
    bea.until("who is at the end stays there", f"(log => {end})(document.querySelector('#log'))")
    bea.run("document.querySelector('#log').scrollTop = 0")
    bea.until("who is not is offered the way", "!document.querySelector('#newest').hidden")
    ann.say("And goes out again.")
    bea.until("and told how much is new", "document.querySelector('#newest').textContent === '1 new \u2193'")
    check(bea.run("document.querySelector('#log').scrollTop") == 0, "and is not moved")
    bea.picture("new")
    bea.click("#newest")
    bea.say("Good. The wind is from the west, I shall be there at nine with the small boat.")
    bea.say("\U0001F6F6")
    ann.reads("Ann reads it", "\U0001F6F6")
    bea.until("all has arrived", "!document.querySelector('.waiting')")
    bea.desk()
    bea.picture("talk")
    bea.phone()
    bea.click("#show-people")
    bea.picture("people")
    bea.run("document.querySelector('#log').click()")

    # The server goes away and comes back.
    check(server.stop() == 0, "the server stops by SIGTERM with status 0")
    ann.until("Ann is told", "!document.querySelector('#banner').hidden")
    ann.say("Is anybody there?")
    ann.until("what she says waits", "document.querySelectorAll('.waiting').length === 1")
    ann.picture("away")
    again = Server(server.address)
    try:
        for page, who in [(ann, "Ann"), (bea, "Bea")]:
            page.click("#retry")
            page.connected(f"{who}, again,")
        bea.reads("and is delivered then", "Is anybody there?")
        bea.noted("the new history is told from the old", "the room has begun anew")
        ann.until("once", """!document.querySelector('.waiting') && [...document.querySelectorAll('.words')]
            .filter((it) => it.firstChild.data === 'Is anybody there?').length === 1""")
        check(not browser.complaints, f"no page has complained {browser.complaints or ''}")
    finally:
        again.stop()


if pictures is not None:
    pictures.mkdir(parents=True, exist_ok=True)
running = Server()
chromium = Browser()
try:
    (blocked if is_blocked else talk)(running, chromium)
finally:
    chromium.end()
    if running.process.poll() is None:
        running.stop()
