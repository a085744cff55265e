# SPDX-License-Identifier: BSD-3-Clause
# Called by vhost_user_balloon.sh: the daemon DAEMON, as its users meet it: its output, its commands,
# its control socket, and guests of the scripted front end FRONT_END that come and go.
#
#     python3 vhost_user_balloon.py DAEMON FRONT_END DIRECTORY

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

daemon_path, front_end_path, directory = sys.argv[1:]
page, mebibyte = 4096, 1 << 20
memory = 64  # MiB, of each guest
patience = 15  # seconds
failed = False


def check(name, holds, otherwise=""):
    global failed
    failed = failed or not holds
    print(f"ok   {name}" if holds else f"FAIL {name}: {otherwise}", flush=True)


def check_equal(name, found, expected):
    check(name, found == expected, f"{found} and not {expected}")


def path(name):
    return os.path.join(directory, name)


class lines:
    """Lines of a descriptor that come until a time; none any more: None."""

    def __init__(self, fd):
        self.fd, self.rest, self.is_open = fd, b"", True

    def next(self, seconds=patience):
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            left = end - time.monotonic()
            if left < 0 or not select.select([self.fd], [], [], left)[0]:
                return None
            piece = os.read(self.fd, 65536)
            if not piece:
                self.is_open = False
                return None
            self.rest += piece
        line, self.rest = self.rest.split(b"\n", 1)
        return line.decode()


class daemon:
    def __init__(self, *options, stdin=subprocess.PIPE, is_json=True):
        self.socket, self.control = path("balloon.sock"), path("control.sock")
        arguments = [daemon_path, "--socket", self.socket, "--control", self.control, *options]
        if is_json:
            arguments.append("--json")
        self.process = subprocess.Popen(
            arguments, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.out = lines(self.process.stdout.fileno())
        self.errors = lines(self.process.stderr.fileno())
        self.seen = []
        first = self.event("listening") if is_json else self.out.next()
        if not first:
            raise SystemExit("FAIL the daemon starts: " + self.process.stderr.read().decode())

    def event(self, name, seconds=patience, test=lambda event: True):
        """The next event of that name which passes the test; the others are in `seen`."""
        end = time.monotonic() + seconds
        while True:
            line = self.out.next(max(0, end - time.monotonic()))
            if line is None:
                return None
            event = json.loads(line)
            self.seen.append(event)
            if event["event"] == name and test(event):
                return event

    def line(self, part, seconds=patience):
        end = time.monotonic() + seconds
        while True:
            line = self.out.next(max(0, end - time.monotonic()))
            if line is None or part in line:
                return line

    def type(self, text):
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def end(self, how):
        """The exit status, after a signal or another way to end it."""
        if isinstance(how, int):
            self.process.send_signal(how)
        else:
            how()
        # What it still prints must not keep it.
        while self.out.next(0.2) is not None or self.out.is_open:
            if self.process.poll() is not None:
                break
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "nothing: it runs on"

    def files(self):
        return [f for f in (self.socket, self.control) if os.path.exists(f)]


class guest:
    """The scripted front end."""

    def __init__(self, served_by, begins=True):
        self.process = subprocess.Popen(
            [front_end_path, served_by.socket, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.out = lines(self.process.stdout.fileno())
        self.began = self.ask("begin") if begins else None

    def send(self, what):
        self.process.stdin.write(what.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, what):
        self.send(what)
        return self.out.next(30)

    def number(self, what):
        answer = self.ask(what)
        return int(answer) if answer and answer.isdigit() else answer

    def settles(self, mebibytes):
        return self.ask(f"settle {mebibytes * mebibyte // page}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def leave(self):
        self.process.stdin.close()
        self.process.wait(patience)


class qmp:
    def __init__(self, served_by, negotiates=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(served_by.control)
        self.lines = lines(self.socket.fileno())
        self.greeting = json.loads(self.lines.next())
        self.events = []
        if negotiates:
            self.ask("qmp_capabilities")

    def send(self, raw):
        self.socket.sendall(raw)

    def receive(self, seconds=patience):
        """The next answer; events are put aside."""
        while True:
            line = self.lines.next(seconds)
            if line is None:
                return None
            message = json.loads(line)
            if "event" not in message:
                return message
            self.events.append(message)

    def ask(self, command, **arguments):
        message = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self.send(json.dumps(message).encode())  # without a line's end, as some managers do
        return self.receive()

    def get(self, name):
        return self.ask("qom-get", path=device, property=name)["return"]

    def set(self, name, value):
        return self.ask("qom-set", path=device, property=name, value=value)

    def refusal(self, raw):
        """class and text of the error that is the answer"""
        self.send(raw if isinstance(raw, bytes) else raw.encode() + b"\n")
        answer = self.receive()
        if not answer or "error" not in answer:
            return answer
        return answer["error"]["class"], answer["error"]["desc"]

    def event(self, name, seconds=patience, test=lambda data: True):
        while True:
            for event in self.events:
                if event["event"] == name and test(event["data"]):
                    return event
            line = self.lines.next(seconds)
            if line is None:
                return None
            self.events.append(json.loads(line))


device = "/machine/peripheral/balloon0"
# By their place: QEMU's keys in guest-stats, in the order of the tags.
keys = """stat-swap-in stat-swap-out stat-major-faults stat-minor-faults stat-free-memory
    stat-total-memory stat-available-memory stat-disk-caches stat-htlb-pgalloc stat-htlb-pgfail
    stat-oom-kills stat-alloc-stalls stat-async-scans stat-direct-scans stat-async-reclaims
    stat-direct-reclaims""".split()
unknown = 2**64 - 1
not_active = ("DeviceNotActive", "No balloon device has been activated")


def command_line():
    """What is wrong gets one line of standard error alone."""

    def run(*arguments):
        done = subprocess.run(
            [daemon_path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=patience
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    s = path("options.sock")
    for arguments in (
        "--no-such-option",
        "--socket",
        "--target 4K",
        f"--socket {s} stray",
        f"--socket {s} --target 3K",
        f"--socket {s} --target x",
        f"--socket {s} --target 16384G",
        f"--socket {s} --stats-interval -1",
        f"--socket {s} --patience 1s",
        f"--socket {s} --control {s}",
        "--socket " + "a" * 200,
    ):
        status, out, errors = run(*arguments.split())
        check(
            f"{arguments[:60]!r} gets one line and exit status 2".replace(directory + "/", ""),
            status == 2 and not out and errors.count("\n") == 1,
            f"{status} {out} {errors}",
        )
    for arguments in ([], ["--help"]):
        status, out, errors = run(*arguments)
        check(
            f"{arguments or 'no argument'} prints the help",
            status == 0 and "Usage:" in out and not errors,
            f"{status} {errors}",
        )

    with open(path("file"), "w") as file:
        file.write("kept")
    status, _, errors = run("--socket", path("file"))
    check(
        "a file that is no socket stays, and is an error",
        status == 1 and errors.count("\n") == 1 and open(path("file")).read() == "kept",
        f"{status} {errors}",
    )
    status, _, errors = run("--socket", path("no/such/directory"))
    check("a directory that is missing is an error", status == 1 and errors.count("\n") == 1, errors)

    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path("balloon.sock"))
    stale.close()
    one = daemon()
    check("a socket that nobody listens at is replaced", True)
    status, _, errors = run("--socket", one.socket)
    check(
        "one that somebody listens at is not",
        status == 1 and "another process" in errors,
        f"{status} {errors}",
    )
    check_equal("SIGTERM ends it with exit status 0", one.end(signal.SIGTERM), 0)
    check_equal("its sockets go with it", one.files(), [])


def without_a_guest():
    """QMP's words are QEMU 7.2's."""
    one = daemon("--stats-interval", "3")
    manager = qmp(one, negotiates=False)
    check("the greeting is QMP's", {"version", "capabilities"} <= set(manager.greeting["QMP"]))
    expecting = ("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
    check_equal("a client has to negotiate", manager.refusal('{"execute":"query-balloon"}'), expecting)
    manager.send(b'{"execute":"qmp_capabilities","arguments":{"enable":[]},"id":[7]}\r\n')
    check_equal("an id comes back", manager.receive(), {"return": {}, "id": [7]})

    many = [qmp(one) for _ in range(20)]
    answers = [m.ask("query-status")["return"]["status"] for m in many]
    check_equal("20 more clients are served", answers, ["prelaunch"] * 20)
    for m in many:
        m.socket.close()

    generic = "GenericError"
    for sent, expected in (
        ('{"execute":"qmp_capabilities"}',
         ("CommandNotFound", "Capabilities negotiation is already complete, command ignored")),
        ('{"execute":"query-balloon"}', not_active),
        ('{"execute":"balloon","arguments":{"value":1048576}}', not_active),
        ('{"execute":"balloon"}', (generic, "Parameter 'value' is missing")),
        ('{"execute":"balloon","arguments":{"value":"x"}}',
         (generic, "Invalid parameter type for 'value', expected: integer")),
        ('{"execute":"balloon","arguments":{"value":1e3}}',
         (generic, "Invalid parameter type for 'value', expected: integer")),
        ('{"execute":"balloon","arguments":{"value":1,"y":1}}', (generic, "Parameter 'y' is unexpected")),
        ('{"execute":"nope"}', ("CommandNotFound", "The command nope has not been found")),
        ('{"execut":"nope"}', (generic, "QMP input member 'execut' is unexpected")),
        ('{"execute":1}', (generic, "QMP input member 'execute' must be a string")),
        ('{}', (generic, "QMP input lacks member 'execute'")),
        ('{"execute":"query-balloon","arguments":[]}',
         (generic, "QMP input member 'arguments' must be an object")),
        ('[1]', (generic, "QMP input must be a JSON object")),
        ('{"execute":"qom-list","arguments":{"path":"/nope"}}',
         ("DeviceNotFound", "Device '/nope' not found")),
        (f'{{"execute":"qom-get","arguments":{{"path":"{device}","property":"nope"}}}}',
         (generic, "Property 'virtio-balloon-device.nope' not found")),
        (f'{{"execute":"qom-set","arguments":{{"path":"{device}","property":"guest-stats","value":1}}}}',
         (generic, "Property 'virtio-balloon-device.guest-stats' is not writable")),
    ):
        check_equal(f"{sent[:70]} is refused in QEMU's words", manager.refusal(sent), expected)
    interval = "guest-stats-polling-interval"
    for value, why in ((-1, "timer value must be greater than zero"),
                       (1 << 32, "timer value is too big"),
                       ("a", f"Invalid parameter type for '{interval}', expected: integer")):
        check_equal(f"{interval} {value!r} is refused in QEMU's words",
                    manager.set(interval, value)["error"]["desc"], why)
    check_equal(f"{interval} is the option's", manager.get(interval), 3)
    manager.set(interval, 60)
    check_equal("and can be set", manager.get(interval), 60)

    for what, raw in (
        ("no JSON", b"nonsense\n"),
        ("half of an object", b'{"execute":\n'),
        ("bytes that are no text", b'{"execute":"\xff\xfe"}\n'),
        ("a closing brace alone", b"}\n"),
        ("a string without an end", b'{"execute":"query-status}\n'),
        ("a line that is too long", b'{"a":"' + b"x" * 200000 + b'"}\n'),
        ("a million brackets", b"[" * 1000000 + b"\n"),
        ("a zero byte", b"\0\n"),
    ):
        found = manager.refusal(raw)
        check(f"{what} is an error, and one only",
              isinstance(found, tuple) and found[0] == generic and "JSON" in found[1] and
              "return" in manager.ask("query-version"), str(found))
    manager.send(b'\r\n \n{"execute":"query-status"}{"execute":"query-version"}\n\n')
    check("two commands in one line have two answers",
          "running" in manager.receive()["return"] and "qemu" in manager.receive()["return"])
    manager.send(b'{"execute":"query-')
    time.sleep(0.1)
    manager.send(b'status"}')
    check("a command that comes in pieces has one answer", "running" in manager.receive()["return"])

    greedy = qmp(one)
    greedy.socket.settimeout(patience)
    try:
        for _ in range(200000):
            greedy.send(b'{"execute":"query-commands"}' * 10)
        is_let_go = False
    except (BrokenPipeError, ConnectionResetError):
        is_let_go = True
    check("a client that never reads is let go", is_let_go)
    names = [c["name"] for c in manager.ask("query-commands")["return"]]
    check("the others are served", "balloon" in names and "qom-get" in names, str(names))

    children = [p["name"] for p in manager.ask("qom-list", path="/machine/peripheral")["return"]]
    check_equal("the balloon is found in the tree", children, ["type", "balloon0"])
    properties = [p["name"] for p in manager.ask("qom-list", path=device)["return"]]
    check("and has its properties", {"guest-stats", interval} <= set(properties), str(properties))
    statistics = manager.get("guest-stats")
    check_equal("all sixteen statistics are there, and unknown",
                statistics, {"stats": dict.fromkeys(keys, unknown), "last-update": 0})
    check_equal("quit is answered", manager.ask("quit"), {"return": {}})
    check_equal("and ends it with exit status 0", one.end(lambda: None), 0)
    check_equal("its sockets go with it", one.files(), [])


def with_guests():
    one = daemon("--target", "8M", "--stats-interval", "1")
    manager, other, silent = qmp(one), qmp(one), qmp(one, negotiates=False)
    linux = guest(one)
    check_equal("a front end connects and its driver starts", linux.began, "ok")
    found = one.event("memory")
    check("its memory is told", found and found["bytes"] == memory * mebibyte, str(found))
    check("and that the driver runs", one.event("running") is not None)
    check_equal("the balloon goes to the target", linux.settles(8), "ok")
    check("which is reported", one.event("reached", test=lambda e: e["actual_bytes"] == 8 * mebibyte))
    check_equal("query-balloon says what is left",
                manager.ask("query-balloon")["return"]["actual"], 56 * mebibyte)
    check("query-status says that it runs", manager.ask("query-status")["return"]["running"])

    # Memory really comes back: the guest's file gets holes.
    linux.ask("touch")
    before = linux.number("file")
    manager.ask("balloon", value=24 * mebibyte)
    check_equal("balloon 24 MiB is a balloon of 40", linux.settles(40), "ok")
    fell = before - linux.number("file")
    check_equal("the guest's file has 32 MiB less", fell, 32 * mebibyte)
    check_equal("what is in the balloon reads as zeros", linux.number("zeros"), 0)
    for name, m in (("a client", manager), ("another one", other)):
        event = m.event("BALLOON_CHANGE", test=lambda data: data["actual"] == 24 * mebibyte)
        check(f"{name} gets BALLOON_CHANGE", event and event["timestamp"]["seconds"] > 1e9)
    check_equal("one that has not negotiated does not", silent.lines.next(0.3), None)
    before = linux.number("file")
    manager.ask("balloon", value=1 << 62)
    check_equal("more than there is empties the balloon", linux.settles(0), "ok")
    linux.ask("touch")
    check_equal("and the guest can use its memory again", linux.number("file") - before, 40 * mebibyte)
    check_equal("balloon 0 is refused in QEMU's words",
                manager.refusal('{"execute":"balloon","arguments":{"value":0}}'),
                ("GenericError", "Parameter 'target' expects a size"))

    # Statistics.
    expected = {key: (tag + 1) * 1000000 for tag, key in enumerate(keys)}
    statistics = manager.get("guest-stats")
    check_equal("guest-stats has all sixteen", statistics["stats"], expected)
    check("and when they came", abs(statistics["last-update"] - time.time()) < 5)
    one.seen.clear()
    found = one.event("statistics")
    names = {"swap-in": 1000000, "oom-kills": 11000000, "direct-reclaims": 16000000}
    check("they are printed as they come", found and names.items() <= found["statistics"].items())
    found = one.event("verdict")
    check("with a verdict", found and (found["level"], found["rule"]) == ("none", "T14"), str(found))
    linux.ask("stress")
    found = one.event("verdict", test=lambda e: e["level"] not in ("none", "unknown"))
    check("stalls and scans are pressure, and the reason is told",
          found and found["because"] in ("alloc-stalls", "direct-scans", "direct-reclaims")
          and found["rates"]["alloc-stalls"] > 100, str(found))
    linux.ask("kill")
    found = one.event("verdict", test=lambda e: e["because"] == "oom-kills")
    check("a process killed for memory is critical", found and found["level"] == "critical", str(found))
    manager.set("guest-stats-polling-interval", 0)
    time.sleep(0.3)
    stopped = manager.get("guest-stats")["stats"]
    time.sleep(1.7)
    check_equal("an interval of 0 stops the polling", manager.get("guest-stats")["stats"], stopped)
    one.type("stats")
    found = one.event("totals")
    check("stats asks nevertheless", found and found["failures"] == 0, str(found))
    check("for new ones", manager.get("guest-stats")["stats"] != stopped)
    manager.set("guest-stats-polling-interval", 1)

    # Commands.
    one.type("target 12M")
    check_equal("target 12M on standard input", linux.settles(12), "ok")
    one.type("  target   4M  ")
    check_equal("target 4M, with blanks", linux.settles(4), "ok")
    for typed, part in (("target", "SIZE"), ("target 3K", "4096"), ("target 1 2", "SIZE"),
                        ("target 65M", "only 64.0 MiB"), ("hint", "start or stop"),
                        ("hint start", "not negotiated"), ("nonsense", "not a command"),
                        ("stats now", "no argument"), ("x" * 5000, "not a command")):
        one.type(typed)
        found = one.event("error")
        check(f"{typed[:20]!r} is an error", found and part in found["message"], str(found))
    one.type("help")
    check("help lists the commands", "hint start" in (one.event("help") or {"text": ""})["text"])
    one.type("")
    check_equal("the balloon is still there", linux.settles(4), "ok")

    linux.process.send_signal(signal.SIGSTOP)
    check("a guest that does not answer is reported", one.event("no_answer"))
    check("managers are served meanwhile", "return" in manager.ask("query-balloon"))
    linux.process.send_signal(signal.SIGCONT)
    one.seen.clear()
    check("and when it does, its statistics come", one.event("statistics"))

    # Guests come and go.
    linux.kill()
    check("a front end that dies is reported", one.event("disconnected"))
    check_equal("then there is no balloon", manager.refusal('{"execute":"query-balloon"}'), not_active)
    check("and nothing runs", not manager.ask("query-status")["return"]["running"])
    check_equal("and no statistics", manager.get("guest-stats")["stats"]["stat-swap-in"], unknown)
    one.type("stats")
    check("stats has nobody to ask", "no guest" in (one.event("error") or {"message": ""})["message"])
    second = guest(one)
    check_equal("the next front end is served", second.began, "ok")
    check_equal("and gets the target of the last", second.settles(4), "ok")
    check_equal("its statistics come",
                one.event("statistics", test=lambda e: e["actual_bytes"] > 0)["actual_bytes"], 4 * mebibyte)
    check_equal("query-balloon is the new guest's",
                manager.ask("query-balloon")["return"]["actual"], 60 * mebibyte)
    check_equal("its driver stops", second.ask("stop"), "ok")
    check_equal("and starts again, to the same target",
                (second.ask("begin"), second.settles(4)), ("ok", "ok"))
    waiting = guest(one, begins=False)
    waiting.send("begin")
    check_equal("a front end beside it waits", waiting.out.next(0.5), None)
    one.type("target 5M")
    check_equal("while the first is served", second.settles(5), "ok")
    second.leave()
    check("the first leaves", one.event("disconnected"))
    check_equal("and the other one is served",
                (waiting.out.next(), waiting.settles(5)), ("ok", "ok"))
    one.type("target 4M")
    waiting.leave()
    check("it leaves", one.event("disconnected"))
    third = guest(one, begins=False)
    check_equal("a message that is none closes its connection", third.ask("raw " + "ff" * 64), "closed")
    third.kill()
    found = one.event("disconnected")
    check("which is reported with a reason", found and found["reason"], str(found))
    fourth = guest(one)
    check_equal("and nothing else", (fourth.began, fourth.settles(4)), ("ok", "ok"))
    check("clients are still served", "return" in manager.ask("query-balloon"))
    check_equal("SIGINT ends it with exit status 0, with a guest", one.end(signal.SIGINT), 0)
    check("managers are told", manager.event("SHUTDOWN"))
    check_equal("its sockets go with it", one.files(), [])
    check_equal("the guest notices", fourth.out.next(), "gone")


def as_text():
    """For people; standard input has ended before it began; packed rings; a guest with too little."""
    one = daemon("--packed", "--patience", "1", "--stats-interval", "1", "--deflate-on-oom",
                 "--must-tell-host", stdin=subprocess.DEVNULL, is_json=False)
    manager = qmp(one)
    linux = guest(one)
    check_equal("it serves without standard input", linux.began, "ok")
    found = one.line("the driver runs")
    check("packed rings, if both like", found and "RING_PACKED" in found, found)
    found = one.line("statistics:")
    check("a line of statistics", found and "total 5.7 MiB" in found, found)
    found = one.line("pressure:")
    check("a line with the verdict", found and "none, rule T14 (none), because of nothing" in found, found)
    manager.ask("balloon", value=1)
    found = one.line("goes on trying")
    check("a target that the guest can't reach is reported", found and "no nearer than" in found, found)
    manager.ask("balloon", value=63 * mebibyte)
    check_equal("the next one is reached", linux.settles(1), "ok")
    check("which is reported, too", one.line("balloon: 1.0 MiB, as asked for"))
    check_equal("a guest without memory takes pages back", linux.ask("oom 56"), "ok")
    found = one.line("the guest made it")
    check("which is reported", found and "800.0 KiB" in found, found)
    check_equal("the balloon is left at that",
                manager.ask("query-balloon")["return"]["actual"], 64 * mebibyte - 200 * page)
    check_equal("quit ends it", (manager.ask("quit"), one.end(lambda: None)), ({"return": {}}, 0))
    linux.kill()


for part in (command_line, without_a_guest, with_guests, as_text):
    try:
        part()
    except Exception as problem:  # a part that can't go on fails, and the others are run
        check(f"{part.__name__} goes to its end", False, repr(problem))
sys.exit(1 if failed else 0)
