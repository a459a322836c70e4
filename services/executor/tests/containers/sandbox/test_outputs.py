"""Output files out of real sandboxes, over both links: what is written, what is left, and what must not get out."""

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import zipfile
from typing import Any

import pytest

from hearth_contracts import names
from hearth_contracts.enums import Reason
from hearth_contracts.errors import InvalidName
from hearth_executor.containers.output import OPEN_MAX
from hearth_executor.errors import OutputRefused, OutputTooLarge
from hearth_executor.ports import CallEvents

pytestmark = pytest.mark.docker

MIB = 1024 * 1024


class File:
    """One file, as whoever keeps it sees it."""

    def __init__(self, desk: "Desk", content_type: str) -> None:
        self.bytes_max = desk.bytes_max
        self.content = bytearray()
        self.content_type = content_type
        self.whole = False
        self._desk = desk

    async def write(self, chunk: bytes) -> None:
        await self._desk.gate.wait()
        if self._desk.breaks == "write":
            raise ConnectionError("no broker")
        self._desk.taken += len(chunk)
        if self._desk.taken > self.bytes_max:
            raise OutputTooLarge
        self.content += chunk

    async def finish(self) -> None:
        if self._desk.breaks == "finish":
            raise ConnectionError("no broker")
        self.whole = True


class Desk:
    """Takes output files of one call; stands where the executor's objects do."""

    def __init__(self, heard: Any, *, bytes_max: int = 64 * MIB, breaks: str = "") -> None:
        self.heard = heard
        self.files: dict[str, File] = {}
        self.bytes_max = bytes_max
        self.breaks = breaks
        self.taken = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def events(self) -> CallEvents:
        return dataclasses.replace(self.heard.events(), output=self.open)

    def open(self, name: str, content_type: str) -> File:
        try:
            names.output(name)
        except InvalidName as error:
            raise OutputRefused(str(error)) from error
        self.files[name] = File(self, content_type)
        return self.files[name]

    @property
    def kept(self) -> dict[str, bytes]:
        return {name: bytes(file.content) for name, file in self.files.items() if file.whole}


@pytest.fixture
def desk(make_heard):
    def make(**fields: Any) -> Desk:
        return Desk(make_heard(), **fields)

    return make


async def test_what_is_written_comes_out_whole_and_of_any_kind(load_function, desk, mode):
    source = """
import csv, io, json, zipfile

def handle(event, context):
    with context.output("a.txt", "text/plain") as file:
        print("line", 1, file=file)
        file.writelines([b"two\\n", "dré\\n"])
    writer = context.output("b.csv")
    csv.writer(writer).writerow(["x", 1])
    json.dump({"a": [1]}, context.output("c.json"))
    with zipfile.ZipFile(context.output("d.zip"), "w") as archive:
        archive.writestr("inside", "text")
    with io.TextIOWrapper(context.output("e.txt"), encoding="utf-16-le") as text:
        text.write("wide")
    big = context.output("f.bin")
    for number in range(20 * 16):
        big.write(bytes([number % 251]) * 65536)
    context.output("g.empty")
    context.output("h.bin").write(memoryview(b"12345678").cast("I"))
    return [writer.name, big.closed]
"""
    function = await load_function(source, mode=mode)
    taken = desk()
    finished = await function.call(heard=taken)
    assert (finished.reason, finished.result) == (None, b'["b.csv",false]'), finished
    big = hashlib.sha256(b"".join(bytes([number % 251]) * 65536 for number in range(320))).hexdigest()
    kept = taken.kept
    assert zipfile.ZipFile(io.BytesIO(kept.pop("d.zip"))).read("inside") == b"text"
    assert hashlib.sha256(kept.pop("f.bin")).hexdigest() == big
    assert kept == {
        "a.txt": "line 1\ntwo\ndré\n".encode(), "b.csv": b"x,1\r\n", "c.json": b'{"a": [1]}',
        "e.txt": "wide".encode("utf-16-le"), "g.empty": b"", "h.bin": b"12345678",
    }  # fmt: skip
    assert taken.files["a.txt"].content_type == "text/plain"
    assert finished.usage.bytes_out > 20 * MIB


async def test_a_file_that_nobody_takes_in_holds_up_its_writer_and_nothing_else(load_function, desk, mode):
    source = """
import threading

def handle(event, context):
    written = [0]
    def write():
        with context.output("slow.bin") as file:
            for _ in range(64):
                written[0] += file.write(bytes(65536))
    thread = threading.Thread(target=write)
    with context.output("first.bin") as file:
        file.write("x")
    thread.start()
    while written[0] < 65536 * 2:
        pass
    before = -1
    while before != written[0]:  # until it stands still
        before = written[0]
        threading.Event().wait(0.3)
    print("said all the while", before, flush=True)
    thread.join()
    return before
"""
    function = await load_function(source, mode=mode)
    taken = desk()
    taken.gate.clear()
    call = asyncio.create_task(function.call(heard=taken))
    async with asyncio.timeout(20):
        while b"said all the while" not in taken.heard.text():
            await asyncio.sleep(0.01)
    assert taken.taken == 0
    taken.gate.set()
    finished = await call
    assert finished.reason is None, finished
    # A window of credit, what the process's socket holds, and one buffer: far from the 4 MiB it wanted to write.
    assert json.loads(finished.result) < 2 * MIB
    assert taken.kept == {"slow.bin": bytes(4 * MIB), "first.bin": b"x"}


async def test_past_the_limit_a_function_gets_an_error_and_goes_on(load_function, desk, mode):
    source = """
import errno

def handle(event, context):
    said = []
    context.output("fits.bin").write(bytes(600_000))
    big = context.output("big.bin")
    big.write(bytes(300_000))
    for size in (200_000, 10):
        try:
            big.write(bytes(size))
        except OSError as error:
            said.append([error.errno == errno.EDQUOT, str(error)])
    big.close()
    context.output("after.bin").write(bytes(100))
    return said
"""
    function = await load_function(source, mode=mode)
    taken = desk(bytes_max=1_000_000)
    finished = await function.call(heard=taken)
    assert finished.reason is None, finished
    assert (
        json.loads(finished.result)
        == [[True, f"[Errno {errno.EDQUOT}] a call's output files may have 1000000 bytes together: 'big.bin'"]] * 2
    )
    assert {name: len(content) for name, content in taken.kept.items()} == {"fits.bin": 600_000, "after.bin": 100}
    assert (await function.call(heard=desk())).reason is None


async def test_an_error_that_nobody_catches_fails_the_call_as_a_limit_does(load_function, desk):
    function = await load_function("def handle(event, context):\n    context.output('big').write(bytes(2000))")
    finished = await function.call(heard=desk(bytes_max=1000))
    assert (finished.reason, finished.error_type) == ("resource", "OSError")


async def test_a_function_that_goes_past_its_runtime_gains_nothing(load_function, desk, mode):
    """It finds its own socket and writes what it likes: the file is not kept, the sandbox lives."""
    source = """
def handle(event, context):
    file = context.output("big.bin")
    for _ in range(64):
        context._channel.send_data(14, bytes(65536), 1)
    context._channel.send(14, b"", 1, 1)
    file.raw.spoiled = True
    return "done"
"""
    function = await load_function(source, mode=mode)
    taken = desk(bytes_max=1_000_000)
    finished = await function.call(heard=taken)
    assert (finished.reason, finished.result) == (None, b"done")
    assert taken.kept == {}
    assert len(taken.files["big.bin"].content) <= 1_000_000
    assert function.sandbox.usable
    assert (await function.call(heard=desk())).reason is None


async def test_a_name_that_is_refused_is_an_error_that_says_why(load_function, desk):
    source = """
def handle(event, context):
    said = []
    for name in event:
        try:
            context.output(name)
        except OSError as error:
            said.append([type(error).__name__, str(error)])
    context.output("fine")
    return said
"""
    function = await load_function(source)
    hostile = ["../x", "a/b", "..", "", "a\0b", "x" * 201, "a\x1b[31m"]
    taken = desk()
    finished = await function.call(json.dumps(hostile).encode(), heard=taken)
    said = json.loads(finished.result)
    assert [kind for kind, _ in said] == ["OutputRefused"] * len(hostile)
    assert said[0][1] == "output '../x': a name holds no / and no \\: outputs have no folders"
    assert list(taken.kept) == ["fine"]


async def test_so_many_files_may_be_open_at_once_and_threads_may_open_them(load_function, desk, mode):
    source = f"""
import threading

def handle(event, context):
    def write(number):
        with context.output(f"thread-{{number}}") as file:
            file.write(str(number) * 1000)
    threads = [threading.Thread(target=write, args=(number,)) for number in range({OPEN_MAX})]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    files = [context.output(f"open-{{number}}") for number in range({OPEN_MAX})]
    try:
        context.output("too many")
    except OSError as error:
        said = str(error)
    files[0].close()
    for number in range(40):
        context.output(f"next-{{number}}").close()
    return said
"""
    function = await load_function(source, mode=mode)
    taken = desk()
    finished = await function.call(heard=taken)
    assert finished.result == b"16 output files are open at once already: close one", finished
    assert len(taken.kept) == 2 * OPEN_MAX + 40
    assert taken.kept["thread-7"] == b"7" * 1000


# -- what is left


LEAVES = """
import os

def handle(event, context):
    os.chdir("/output")
    open("b.txt", "w").write("left")
    open("a.bin", "wb").write(bytes(5_000_000))
    open("empty", "w")
    open("/tmp/elsewhere", "w").write("not an output")
    os.symlink("/tmp/elsewhere", "link")
    os.symlink("/code/main.py", "code")
    os.mkfifo("pipe")
    os.mkdir("folder")
    open("folder/inside", "w").write("x")
    import socket
    socket.socket(socket.AF_UNIX).bind("socket")
    if event == "fail":
        raise ValueError
    return "done"
"""


@pytest.mark.parametrize("isolation", ["process", "reuse", "fresh"])
async def test_what_a_function_leaves_in_its_folder_comes_out_and_nothing_but_plain_files(load_function, desk, mode, isolation):
    function = await load_function(LEAVES, mode=mode, isolation=isolation)
    taken = desk()
    finished = await function.call(heard=taken)
    assert (finished.reason, finished.result) == (None, b"done"), finished
    assert {name: len(content) for name, content in taken.kept.items()} == {"b.txt": 4, "a.bin": 5_000_000, "empty": 0}
    log = taken.heard.text("log").decode()
    for name in ("link", "code", "pipe", "folder", "socket"):
        assert f"/output/{name} is not a plain file, and was not kept" in log
    if isolation != "fresh":  # the next call finds its folder empty, and sends nothing
        function_taken = desk()
        again = await function.call(b'"fail"', heard=function_taken)
        assert again.error_type == "ValueError", again


async def test_what_a_failed_call_left_stays_inside(load_function, desk):
    function = await load_function(LEAVES)
    taken = desk()
    finished = await function.call(b'"fail"', heard=taken)
    assert (finished.reason, taken.files) == ("error", {})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("open('/output/a\\nb', 'w')", "use printable characters only"),
        ("open('/output/big', 'w').write('x' * 2000)", "may have 1000 bytes together"),
        ("open('/output/x', 'w'); os.chmod('/output/x', 0)", "Permission denied"),
    ],
)
async def test_a_left_file_that_cannot_be_sent_makes_the_call_fail(load_function, desk, source, said):
    """A success has all of its files."""
    function = await load_function(f"import os\ndef handle(event, context):\n    {source}\n    return 1")
    finished = await function.call(heard=desk(bytes_max=1000))
    assert finished.reason in ("error", "resource")
    assert said in finished.error_message


# -- when it ends badly


@pytest.mark.parametrize("breaks", ["write", "finish"])
async def test_a_file_that_cannot_be_stored_loses_the_attempt(load_function, desk, mode, breaks):
    source = """
def handle(event, context):
    with context.output("x") as file:
        for _ in range(32):
            file.write(bytes(65536))
    return "done"
"""
    function = await load_function(source, mode=mode)
    taken = desk(breaks=breaks)
    finished = await function.call(heard=taken)
    assert finished.reason == Reason.LOST, finished
    assert "no broker" in finished.error_message
    assert taken.kept == {}
    if function.sandbox.usable:
        assert (await function.call(heard=desk())).reason is None


async def test_a_cancel_in_the_middle_ends_the_call_at_once_and_no_file_is_whole(load_function, desk, mode):
    source = """
def handle(event, context):
    if event: return 1
    with context.output("endless") as file:
        while True:
            file.write(bytes(65536))
"""
    function = await load_function(source, mode=mode)
    taken = desk(bytes_max=1 << 40)
    call = asyncio.create_task(function.call(heard=taken))
    async with asyncio.timeout(20):
        while taken.taken < 2 * MIB:
            await asyncio.sleep(0.005)
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.timeout(3):
            await call
    assert taken.kept == {}
    assert (await function.call(b"1")).result == b"1"


async def test_a_time_limit_ends_a_call_whose_file_nobody_takes_in(load_function, desk, mode):
    source = "def handle(event, context):\n    if event: return 1\n    file = context.output('x')\n    while True: file.write(bytes(65536))"
    function = await load_function(source, mode=mode)
    taken = desk()
    taken.gate.clear()
    async with asyncio.timeout(5):
        finished = await function.call(heard=taken, timeout_s=0.5)
    assert finished.reason == Reason.TIMEOUT
    assert (await function.call(b"1")).result == b"1"
