"""Functions that hang, flood, crash, leave things behind and look for a way to the link. Each guard has its control."""

import asyncio
import json
import time

import pytest

from hearth_contracts.enums import Reason
from hearth_executor.containers import fast_link
from hearth_executor.errors import LinkFailed, SandboxSpent

pytestmark = pytest.mark.docker

BOTH = pytest.mark.parametrize("isolation", ["process", "reuse"])


# -- time


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import signal\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    while True: pass",
        "import signal\n    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n    while True: pass",
        "import subprocess; subprocess.run(['sleep', '1000'])",
    ],
)
async def test_a_call_ends_in_time_whatever_the_function_does(load_function, isolation, body, mode):
    function = await load_function(
        f"def handle(event, context):\n    if event: return 1\n    {body}\n", isolation=isolation, mode=mode
    )
    began = time.monotonic()
    finished = await function.call(timeout_s=0.3)
    assert finished.reason == Reason.TIMEOUT
    assert time.monotonic() - began < 0.3 + 1 + 1
    assert await fine_or_spent(function)


async def test_a_function_may_clean_up_within_the_grace(load_function, make_heard):
    source = """
import signal, sys, time
def handle(event, context):
    def stop(*_):
        print("cleaned up")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    time.sleep(100)
"""
    function = await load_function(source)
    heard = make_heard()
    began = time.monotonic()
    finished = await function.call(timeout_s=0.3, heard=heard)
    assert (finished.reason, heard.text()) == (Reason.TIMEOUT, b"cleaned up\n")
    assert time.monotonic() - began < 1


@BOTH
async def test_cancelling_stops_the_function_and_the_next_call_works(load_function, isolation, mode):
    source = "import time\ndef handle(event, context):\n    if event: return 1\n    time.sleep(1000)"
    function = await load_function(source, isolation=isolation, mode=mode)
    task = asyncio.create_task(function.call())
    await asyncio.sleep(0.2)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 1
    assert (await function.call(b"1")).result == b"1"


#: A kernel that cannot keep signals and writing within a function's processes.
UNCONFINED = (("import hearth_boot", "import hearth_landlock; hearth_landlock.VERSION_MIN = 99; import hearth_boot"),)


async def test_a_supervisor_that_is_stopped_costs_its_sandbox_not_the_slot(load_function):
    # In fast mode a function shares its uid with the supervisor: where the kernel does not forbid it, it may signal it.
    source = "import os, signal, time\ndef handle(event, context):\n    os.kill(SUPERVISOR, signal.SIGSTOP)\n    time.sleep(100)"
    function = await load_function(source.replace("SUPERVISOR", "os.getppid() - 1") + FIND_SUPERVISOR, without=UNCONFINED)
    began = time.monotonic()
    finished = await function.call(timeout_s=0.3)
    assert finished.reason == Reason.TIMEOUT
    assert time.monotonic() - began < 0.3 + 1 + 1
    assert not function.sandbox.usable


@BOTH
async def test_a_function_that_kills_its_supervisor_is_lost(load_function, isolation):
    source = (
        "import os, signal, time\ndef handle(event, context):\n    os.kill(supervisor(), signal.SIGKILL)\n    time.sleep(100)"
    )
    function = await load_function(source + FIND_SUPERVISOR, isolation=isolation, without=UNCONFINED)
    finished = await function.call()
    assert finished.reason == Reason.LOST
    assert not function.sandbox.usable
    with pytest.raises(SandboxSpent):
        await function.call()


@BOTH
async def test_a_function_that_kills_its_zygote_has_failed_and_the_sandbox_is_spent(load_function, isolation, mode):
    source = "import os, time\ndef handle(event, context):\n    os.kill(os.getppid(), 9)\n    time.sleep(100)"
    function = await load_function(source, isolation=isolation, mode=mode)
    finished = await function.call()
    assert (finished.reason, finished.error_type) == ("error", "Exited")
    with pytest.raises(SandboxSpent, match="zygote"):
        await function.call()


async def test_as_first_process_the_supervisor_cannot_be_killed_from_inside(load_function):
    source = (
        "import os, signal\ndef handle(event, context):\n    for n in (9, 15, 19): os.kill(1, n)\n    return os.getppid() != 1"
    )
    function = await load_function(source, mode="stdio", without=UNCONFINED)
    assert (await function.call()).result == b"true"
    assert (await function.call()).result == b"true"


async def fine_or_spent(function) -> bool:
    """The next call works, or the sandbox says that something was left running in it."""
    try:
        return (await function.call(b"1")).result == b"1"
    except SandboxSpent as spent:
        return "left running" in str(spent)


# -- what is left behind

LEAVERS = {
    "a daemon": """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True: time.sleep(1)
        os._exit(0)""",
    "a subprocess": """
    subprocess.Popen(["sleep", "1000"], start_new_session=True)""",
    "a fork that ignores signals": """
    if os.fork() == 0:
        os.setsid()
        signal.signal(15, signal.SIG_IGN)
        while True: time.sleep(1)""",
}


@BOTH
@pytest.mark.parametrize("what", LEAVERS)
async def test_a_process_left_running_makes_the_sandbox_spent(load_function, isolation, what, mode):
    function = await load_function(
        f"import os, signal, subprocess, time\ndef handle(event, context):{LEAVERS[what]}\n    return 1",
        isolation=isolation,
        mode=mode,
    )
    finished = await function.call()
    assert finished.result == b"1"
    with pytest.raises(SandboxSpent, match="left running"):
        await function.call()
    assert not function.sandbox.usable


@BOTH
async def test_processes_that_end_by_themselves_do_not(load_function, isolation):
    # The control: the same, but gone in time; some only just after the call.
    source = """
import os, subprocess, time
def handle(event, context):
    subprocess.run(["true"])
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.02)
        os._exit(0)
    for _ in range(5):
        if os.fork() == 0: os._exit(0)
    return 1
"""
    function = await load_function(source, isolation=isolation)
    for _ in range(3):
        assert (await function.call()).result == b"1"
    assert function.sandbox.usable


async def test_what_the_import_starts_may_stay(load_function):
    source = "import subprocess\nhelper = subprocess.Popen(['sleep', '1000'])\ndef handle(event, context): return 1"
    function = await load_function(source)
    for _ in range(3):
        assert (await function.call()).result == b"1"


@BOTH
async def test_scratch_is_empty_for_the_next_call(load_function, isolation, mode):
    source = """
import os
FOLDERS = ("/tmp", "/output", "/dev/shm")
def handle(event, context):
    found = [os.listdir(folder) for folder in FOLDERS]
    for folder in FOLDERS:
        os.makedirs(folder + "/a/b/c")
        open(folder + "/a/b/file", "w").write("x")
        os.symlink("/code", folder + "/link")
        os.mkfifo(folder + "/fifo")
    os.mkdir("/tmp/locked", 0o000) if event else None
    for n in range(event or 0):
        open(f"/tmp/{n}", "w").close()
    return found
"""
    function = await load_function(source, isolation=isolation, mode=mode)
    for extra in (0, 0, 500, 0):
        assert json.loads((await function.call(str(extra).encode())).result) == [[], [], []]


async def test_a_very_deep_folder_is_removed_too(load_function):
    source = """
import os
def handle(event, context):
    os.chdir("/tmp")
    empty = not os.listdir(".")
    for _ in range(3000):
        os.mkdir("d"); os.chdir("d")
    return empty
"""
    function = await load_function(source)
    for _ in range(2):
        assert (await function.call()).result == b"true"


async def test_a_fork_that_returns_from_the_handler_does_not_answer_twice(load_function):
    source = (
        "import os, time\ndef handle(event, context):\n    pid = os.fork()\n    if pid: os.waitpid(pid, 0)\n    return bool(pid)"
    )
    function = await load_function(source)
    for _ in range(3):
        assert (await function.call()).result == b"true"


async def test_idle_children_that_are_killed_are_replaced(load_function):
    source = """
import os
def handle(event, context):
    me, ours = os.getpid(), []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, me) and open(f"/proc/{name}/stat").read().split()[3] == str(os.getppid()):
            os.kill(int(name), 9); ours.append(name)
    return len(ours)
"""
    function = await load_function(source)
    for _ in range(5):
        assert (await function.call()).reason is None


# -- output


@BOTH
async def test_everything_printed_is_log_in_whatever_way(load_function, make_heard, isolation, mode):
    source = """
import ctypes, os, subprocess, sys
def handle(event, context):
    print("python")
    print("no newline", end="")
    sys.stderr.write("\\u00fc \\ud800\\n")
    os.write(1, b"\\xff\\x00raw\\n")
    ctypes.CDLL(None).puts(b"from C")
    subprocess.run(["sh", "-c", "echo child; echo err >&2"])
"""
    function = await load_function(source, isolation=isolation, mode=mode)
    for _ in range(2):
        heard = make_heard()
        assert (await function.call(heard=heard)).reason is None
        assert heard.text() == b"python\nno newline\xff\x00raw\nfrom C\nchild\n"
        assert heard.text("stderr") == "ü \\ud800\nerr\n".encode()


async def test_the_log_comes_while_the_function_runs(load_function, make_heard, mode):
    source = "import time\ndef handle(event, context):\n    print('a', end='')\n    time.sleep(1.5)\n    print('b')"
    function = await load_function(source, mode=mode)
    heard = make_heard()
    began = time.monotonic()
    await function.call(heard=heard)
    assert heard.logs[0][1] == b"a"
    assert heard.logs[0][2] - began < 0.8


@BOTH
async def test_a_flood_is_cut_and_drained(load_function, make_heard, isolation, mode):
    source = """
import os
def handle(event, context):
    line = b"x" * 65536
    for _ in range(800): os.write(1, line)
    os.write(2, b"last")
    return 1
"""
    function = await load_function(source, isolation=isolation, mode=mode)
    heard = make_heard()
    finished = await function.call(heard=heard, timeout_s=20)
    assert (finished.result, finished.log_truncated) == (b"1", True)
    assert sum(len(data) for _, data, _ in heard.logs) == 1024 * 1024
    heard = make_heard()
    assert (await function.call(heard=heard)).reason is None


async def test_a_flood_does_not_hold_up_the_kill(load_function, mode):
    source = "import os\ndef handle(event, context):\n    while True: os.write(1, b'y' * 100000)"
    function = await load_function(source, mode=mode)
    for _ in range(3):
        began = time.monotonic()
        assert (await function.call(timeout_s=0.3)).reason == Reason.TIMEOUT
        assert time.monotonic() - began < 2.3


async def test_late_output_of_a_reused_process_is_not_the_next_calls(load_function, make_heard):
    source = """
import threading, time
def handle(event, context):
    if event:
        return time.sleep(event)
    threading.Thread(target=lambda: (time.sleep(0.05), print("late"))).start()
"""
    function = await load_function(source, isolation="reuse")
    await function.call()
    await asyncio.sleep(0.3)
    heard = make_heard()
    await function.call(b"0.1", heard=heard)
    assert heard.logs == []


# -- the link

FIND_SUPERVISOR = """
def supervisor():
    import os
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        try:
            if b"supervisor.py" in open(f"/proc/{name}/cmdline", "rb").read() and name != "1": return int(name)
        except OSError: pass
    return 1
"""

REFUSED = ("PermissionError", "OSError", "ProcessLookupError")

PROBE = """
import ctypes, json, os, socket, stat
def attempt(action):
    try:
        return action() or "done"
    except Exception as error:
        return type(error).__name__
def handle(event, context):
    target = 1 if event == "stdio" else supervisor()
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try: descriptors[name] = os.readlink(f"/proc/self/fd/{name}").split(":")[0]
        except OSError: pass
    libc = ctypes.CDLL(None, use_errno=True)
    def traced():
        if libc.ptrace(16, target, 0, 0): raise OSError(ctypes.get_errno(), "ptrace")
    def stolen():
        pidfd = os.pidfd_open(target)
        for number in range(3, 80):
            if libc.syscall(438, pidfd, number, 0) >= 0: return "stole"
        raise OSError("nothing")
    unix = [line for line in open("/proc/net/unix").read().splitlines()[1:] if line.split()[3] == "00010000"]  # listening
    def connect():
        s = socket.socket(socket.AF_UNIX); s.settimeout(1); s.connect("\\0" + NAME)
    return {
        "descriptors": descriptors,
        "mem": attempt(lambda: open(f"/proc/{target}/mem", "rb+") and "opened"),
        "environ": attempt(lambda: open(f"/proc/{target}/environ").read()),
        "fds": attempt(lambda: os.listdir(f"/proc/{target}/fd")),
        "maps": attempt(lambda: open(f"/proc/{target}/maps").read()),
        "zygote_mem": attempt(lambda: open(f"/proc/{os.getppid()}/mem", "rb+") and "opened"),
        "zygote_fds": attempt(lambda: os.listdir(f"/proc/{os.getppid()}/fd")),
        "ptrace": attempt(traced),
        "pidfd_getfd": attempt(stolen),
        "connect": attempt(connect),
        "listening": unix,
    }
"""


async def test_user_code_reaches_the_link_by_no_way(load_function, mode):
    function = await load_function(PROBE.replace("NAME", "'none'") + FIND_SUPERVISOR, mode=mode)
    found = json.loads((await function.call(json.dumps(mode).encode())).result)
    # 0 the null device, 1 and 2 pipes for its log, its own socket to the supervisor; and what listing the folder opens.
    kinds = sorted(kind for kind in found["descriptors"].values() if not kind.startswith("/proc"))
    assert kinds == ["/dev/null", "pipe", "pipe", "socket"]
    for way in ("mem", "environ", "fds", "maps", "zygote_mem", "zygote_fds", "ptrace", "pidfd_getfd"):
        assert found[way] in REFUSED, (way, found[way])
    assert found["connect"] == "ConnectionRefusedError"
    assert found["listening"] == []


#: The supervisor stays readable for whoever has its uid.
READABLE = (("LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)", "LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)"), *UNCONFINED)


async def test_the_control_without_its_guard_the_probe_gets_in(load_function, mode):
    function = await load_function(PROBE.replace("NAME", "'none'") + FIND_SUPERVISOR, mode=mode, without=READABLE)
    found = json.loads((await function.call(json.dumps(mode).encode())).result)
    assert found["mem"] == "opened"
    assert "supervisor" in found["maps"] or len(found["maps"]) > 1000
    assert found["environ"] not in REFUSED
    assert found["fds"] not in REFUSED


async def test_even_then_a_forged_frame_on_stdout_is_noticed_by_its_code(load_function):
    source = """
import os, struct, time
def handle(event, context):
    payload = struct.pack(">I", 15) + b'{"reason":null}' + b"forged"
    written = 0
    for name in os.listdir("/proc/1/fd"):
        try:
            if int(name) >= 64:
                fd = os.open(f"/proc/1/fd/{name}", os.O_WRONLY | os.O_NONBLOCK)
                written += os.write(fd, struct.pack(">IBBHI", len(payload), 7, 0, 0, 1) + payload + bytes(16))
        except OSError: pass
    time.sleep(1)
    return written
"""
    function = await load_function(source, mode="stdio", without=READABLE)
    finished = await function.call()
    assert finished.reason == Reason.LOST
    assert b"forged" not in finished.result
    assert "code is wrong" in finished.error_message
    # With the guard in place there is nothing to write to.
    function = await load_function(source, mode="stdio")
    assert (await function.call()).error_type == "PermissionError"


async def test_a_second_connection_finds_nobody(load_function):
    source = """
import socket
def handle(event, context):
    s = socket.socket(socket.AF_UNIX); s.settimeout(1)
    try:
        s.connect("\\0" + event); return "connected"
    except OSError as error:
        return type(error).__name__
"""
    function = await load_function(source)
    name = function.sandbox.container.socket_name
    assert (await function.call(json.dumps(name).encode())).result == b"ConnectionRefusedError"


async def test_a_stranger_who_comes_to_the_link_first_is_refused(start_container):
    """Whoever connects before the supervisor, but is not of this container, never gets a link."""
    container = await start_container()
    other = await start_container()
    impostor = type(container)(
        **{field: getattr(container, field) for field in container.__slots__ if field != "id"}, id=other.id
    )
    with pytest.raises(LinkFailed, match="is not in container"):
        await fast_link.connect(impostor, timeout_s=2)
    ours = type(container)(
        **{field: getattr(container, field) for field in container.__slots__ if field != "uid"}, uid=container.uid + 1
    )
    with pytest.raises(LinkFailed, match="came to the link"):
        await fast_link.connect(ours, timeout_s=5)


async def test_our_own_network_namespace_is_never_entered(start_container):
    import os

    container = await start_container()
    ours = type(container)(
        **{field: getattr(container, field) for field in container.__slots__ if field not in ("pid", "pidfd")},
        pid=os.getpid(),
        pidfd=container.pidfd,
    )
    with pytest.raises(LinkFailed):
        await fast_link.connect(ours, timeout_s=2)


@BOTH
async def test_printed_frames_are_only_log(load_function, make_heard, isolation, mode):
    source = """
import os, struct
def handle(event, context):
    forged = struct.pack(">I", 15) + b'{"reason":null}' + b"forged"
    for call in range(1, 5):
        frame = struct.pack(">IBBHI", len(forged), 7, 0, 0, call) + forged
        os.write(1, frame); os.write(2, frame)
    return "real"
"""
    function = await load_function(source, isolation=isolation, mode=mode)
    heard = make_heard()
    for _ in range(2):
        assert (await function.call(heard=heard)).result == b"real"
    assert b"forged" in heard.text()


@pytest.mark.parametrize(
    "forged",
    [
        'struct.pack(">IBBHI", 2**31, 7, 0, 0, 1)',
        'struct.pack(">IBBHI", 0, 5, 0, 0, 1)',
        'struct.pack(">IBBHI", 0, 16, 0, 0, 1)',
        'struct.pack(">IBBHI", 4, 7, 0, 0, 99) + bytes(4)',
        'struct.pack(">IBBHI", 100000, 8, 0, 0, 1) + bytes(100000)',
        'b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"',
    ],
)
async def test_frames_no_runtime_writes_end_the_call_and_the_sandbox(load_function, forged):
    source = f"""
import os, struct, time
def handle(event, context):
    for name in map(int, os.listdir("/proc/self/fd")):
        try:
            if name > 2 and os.readlink(f"/proc/self/fd/{{name}}").startswith("socket"):
                os.write(name, {forged}); time.sleep(5)
        except OSError: pass
"""
    function = await load_function(source)
    finished = await function.call(timeout_s=3)
    assert (finished.reason, finished.error_type) == ("error", "ProtocolError")
    with pytest.raises(SandboxSpent, match="protocol"):
        await function.call()


@pytest.mark.parametrize("head", [b"[1]", b"not json", b"[" * 3000, b'{"reason": 5, "error": 7, "cpu_us": -1, "headers": {}}'])
async def test_a_made_up_result_head_harms_nobody(load_function, head):
    source = f"""
import os, struct, time
def handle(event, context):
    payload = struct.pack(">I", {len(head)}) + {head!r}
    for name in map(int, os.listdir("/proc/self/fd")):
        try:
            if name > 2 and os.readlink(f"/proc/self/fd/{{name}}").startswith("socket"):
                os.write(name, struct.pack(">IBBHI", len(payload), 7, 0, 0, 1) + payload); time.sleep(5)
        except OSError: pass
"""
    function = await load_function(source)
    finished = await function.call(timeout_s=3)
    assert finished.reason in (Reason.ERROR, Reason.LOST)


# -- memory and processes


async def test_peaks_are_of_the_call_not_of_the_containers_life(load_function, mode):
    source = "def handle(event, context):\n    data = bytearray(event << 20)\n    return len(data)"
    for isolation in ("process", "reuse"):
        function = await load_function(source, mode=mode, isolation=isolation, memory_mb=256)
        peaks = [(await function.call(str(size).encode())).usage.memory_peak_mb for size in (80, 20, 80)]
        assert peaks == [pytest.approx(80, abs=5), pytest.approx(20, abs=5), pytest.approx(80, abs=5)]


@BOTH
@pytest.mark.parametrize("where", ["itself", "a subprocess"])
async def test_memory_that_runs_out_is_told_as_such(load_function, isolation, where, mode):
    bomb = "x = []\\nwhile True: x.append(bytearray(1 << 20))"
    body = (
        f'exec("{bomb}")'
        if where == "itself"
        else f'import subprocess, sys; subprocess.run(["/usr/bin/python3", "-c", "{bomb}"])'
    )
    source = f"def handle(event, context):\n    if event: return 1\n    {body}\n"
    function = await load_function(source, isolation=isolation, mode=mode)
    for _ in range(3):
        try:
            finished = await function.call()
        except SandboxSpent:
            break
        assert finished.reason == Reason.OOM


async def test_a_fork_bomb_is_a_matter_of_resources(load_function, mode):
    source = "import os\ndef handle(event, context):\n    while True: os.fork()"
    function = await load_function(source, mode=mode)
    began = time.monotonic()
    finished = await function.call(timeout_s=3)
    assert finished.reason == Reason.RESOURCE
    assert time.monotonic() - began < 3 + 1 + 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("b'x' * (500 << 20)", "oom"),
        ("f = open('/tmp/big', 'wb')\n    while True: f.write(bytes(1 << 20))", "resource"),
        ("import os\n    fds = [os.open('/dev/null', 0) for _ in range(100_000)]", "resource"),
        ("import threading, time\n    [threading.Thread(target=time.sleep, args=(5,)).start() for _ in range(1000)]", "resource"),
        ("bytearray(1 << 50)", "oom"),
    ],
)
async def test_limits_that_are_reached_are_told_as_such(load_function, body, reason):
    function = await load_function(f"def handle(event, context):\n    {body}\n")
    assert (await function.call(timeout_s=10)).reason == reason


async def test_a_container_that_ends_before_its_link_is_known_at_once(start_container):
    container = await start_container()
    container.kill()
    began = time.monotonic()
    with pytest.raises(LinkFailed):
        # Its supervisor may still come in the moment in which it is killed: then the link ends as soon as it began.
        await (await fast_link.connect(container, timeout_s=20)).greet(20)
    assert time.monotonic() - began < 5
