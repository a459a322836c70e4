"""What a function sees and what its caller gets, over both links, in real containers."""

import asyncio
import io
import json
import tarfile
import time
import zipfile

import pytest

from hearth_executor.errors import SandboxError, SandboxSpent

pytestmark = pytest.mark.docker


async def test_a_call_answers_with_the_handlers_result(load_function, mode):
    function = await load_function("def handle(event, context):\n    return {'hello': event['name']}", mode=mode)
    for name in ("ada", "grace"):
        finished = await function.call(json.dumps({"name": name}).encode())
        assert finished.reason is None
        assert json.loads(finished.result) == {"hello": name}
        assert finished.content_type == "application/json"


FORMS = """
import asyncio
async def coroutine(event, context):
    await asyncio.sleep(0)
    return {"async": event}
def generator(event, context):
    yield "one "
    yield "two"
def records(event, context):
    yield {"n": 1}
    yield {"n": 2}
async def asynchronous_generator(event, context):
    for n in range(3):
        await asyncio.sleep(0)
        yield str(n)
class Callable:
    def __call__(self, event, context):
        return ["called", event]
instance = Callable()
def nothing(event, context): pass
def text(event, context): return "grüße"
def binary(event, context): return b"\\x00\\xff"
def number(event, context): return 1.5
def echo(event, context):
    return {"type": type(event).__name__, "event": event.hex() if isinstance(event, bytes) else event}
"""


@pytest.mark.parametrize(
    ("handler", "result", "content_type"),
    [
        ("coroutine", b'{"async":5}', "application/json"),
        ("generator", b"one two", "text/plain; charset=utf-8"),
        ("records", b'{"n":1}\n{"n":2}\n', "application/x-ndjson"),
        ("asynchronous_generator", b"012", "text/plain; charset=utf-8"),
        ("instance", b'["called",5]', "application/json"),
        ("nothing", b"null", "application/json"),
        ("text", "grüße".encode(), "text/plain; charset=utf-8"),
        ("binary", b"\x00\xff", "application/octet-stream"),
        ("number", b"1.5", "application/json"),
    ],
)
async def test_every_form_of_handler(load_function, handler, result, content_type):
    function = await load_function(FORMS, handler=f"main:{handler}")
    finished = await function.call(b"5")
    assert (finished.reason, finished.result, finished.content_type) == (None, result, content_type)


async def test_a_lambda_style_name_and_a_module_in_a_package(load_function):
    bundle = zipped({"app/__init__.py": "", "app/web.py": "def go(event, context):\n    return __name__"})
    function = await load_function(bundle, kind="zip", handler="app.web.go")
    assert (await function.call()).result == b"app.web"


EVENTS = [
    ("application/json", b'{"a": [1, null]}', "dict", {"a": [1, None]}),
    ("application/json", b" \n 3 \n", "int", 3),
    ("application/json", b"", "NoneType", None),
    ("application/cloudevents+json; charset=utf-8", b"[]", "list", []),
    ("application/json", b"{broken", "str", "{broken"),
    ("application/json", b"[1] trailing", "str", "[1] trailing"),
    ("application/json", b"[" * 100_000, "str", "[" * 100_000),
    ("text/plain; charset=latin-1", b"\xe9", "str", "é"),
    ("text/plain", b"\xff", "bytes", "ff"),
    ("application/octet-stream", b"raw", "bytes", "726177"),
]


async def test_the_event_is_json_else_text_else_bytes(load_function):
    function = await load_function(FORMS, handler="main:echo")
    for content_type, body, kind, event in EVENTS:
        finished = await function.call(body, content_type=content_type)
        assert json.loads(finished.result) == {"type": kind, "event": event}


async def test_the_context_has_our_names_and_lambdas(load_function):
    source = """
def handle(event, context):
    assert 0 < context.remaining_ms() <= 30000
    assert 0 < context.get_remaining_time_in_millis() <= 30000
    return {name: getattr(context, name) for name in (
        "job_id", "aws_request_id", "attempt", "function", "function_name", "version", "function_version", "tenant",
        "memory_limit_in_mb", "traceparent", "start", "invoked_function_arn", "content_type", "http")}
"""
    function = await load_function(source)
    first, second = [json.loads((await function.call()).result) for _ in range(2)]
    assert first["job_id"] == first["aws_request_id"] == "job-1"
    assert first["function"] == first["function_name"] == "probe"
    assert (first["version"], first["function_version"]) == (1, "1")
    assert (first["attempt"], first["tenant"], first["memory_limit_in_mb"]) == (1, "acme", "128")
    assert first["invoked_function_arn"].endswith(":acme:function:probe:1")
    assert first["traceparent"].startswith("00-aaaa")
    assert (first["start"], second["start"]) == ("cold", "warm")


async def test_a_call_without_a_limit_has_no_deadline(load_function):
    function = await load_function("def handle(event, context): return [context.deadline, context.remaining_ms()]")
    assert (await function.call(timeout_s=None)).result == b"[null,null]"


async def test_variables_and_folders(load_function):
    source = """
import os
AT_IMPORT = os.environ["GREETING"]
def handle(event, context):
    open("/tmp/x", "w").write("scratch"); open("/output/x", "w").write("output"); os.remove("/output/x")
    try:
        open("/code/main.py", "w")
    except OSError as error:
        code = type(error).__name__
    return [AT_IMPORT, os.environ["GREETING"], os.getcwd(), code, "HEARTH_FUNCTION" in os.environ, os.environ["HOME"]]
"""
    function = await load_function(source, env={"GREETING": "hällo"})
    assert json.loads((await function.call()).result) == ["hällo", "hällo", "/code", "PermissionError", True, "/tmp"]


async def test_vendored_dependencies_are_found_and_zip_and_tar_are_alike(load_function):
    files = {
        "main.py": "import dep, sub.mod\ndef handle(event, context): return [dep.X, sub.mod.Y]",
        "vendor/dep.py": "X = 1",
        "sub/__init__.py": "",
        "sub/mod.py": "Y = 2",
    }
    for kind, bundle in (("zip", zipped(files)), ("tar.gz", tarred(files))):
        function = await load_function(bundle, kind=kind)
        assert (await function.call()).result == b"[1,2]"


async def test_modules_of_the_runtime_do_not_hide_the_users(load_function):
    files = {
        "main.py": "import frames, supervisor\ndef handle(event, context): return [frames.X, supervisor.X]",
        "frames.py": "X = 1",
        "supervisor.py": "X = 2",
    }
    function = await load_function(zipped(files), kind="zip")
    assert (await function.call()).result == b"[1,2]"


async def test_process_isolation_gives_a_new_process_and_fresh_globals(load_function, mode):
    source = "import os\nN = 0\ndef handle(event, context):\n    global N\n    N += 1\n    return [N, os.getpid()]"
    function = await load_function(source, mode=mode)
    answers = [json.loads((await function.call()).result) for _ in range(10)]
    assert {n for n, _ in answers} == {1}
    assert len({pid for _, pid in answers}) == 10


async def test_threads_pools_and_random_numbers_work_in_every_child(load_function):
    source = """
import asyncio, concurrent.futures, logging, multiprocessing, os, random, threading, uuid
lock = threading.Lock()
def square(n): return n * n
def handle(event, context):
    done = []
    def work():
        with lock: done.append(threading.current_thread() is not threading.main_thread())
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert done == [True] * 4
    assert threading.current_thread() is threading.main_thread()
    assert threading.main_thread().native_id == threading.get_native_id() == os.getpid()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]
    assert asyncio.run(asyncio.to_thread(square, 3)) == 9
    logging.warning("logged")
    process = multiprocessing.get_context("fork").Process(target=square, args=(1,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return [random.random(), str(uuid.uuid4())]
"""
    function = await load_function(source)
    answers = [await function.call() for _ in range(5)]
    assert [answer.error_message for answer in answers] == [""] * 5
    numbers = [json.loads(answer.result) for answer in answers]
    assert len({number for number, _ in numbers}) == len({text for _, text in numbers}) == 5


async def test_threads_started_by_the_import_leave_no_lock_held_in_a_child(load_function):
    source = """
import threading, time
lock = threading.Lock()
def hold():
    while True:
        with lock: time.sleep(0.001)
threading.Thread(target=hold, daemon=True).start()
def handle(event, context):
    thread = threading.Thread(target=lambda: None)
    thread.start(); thread.join()
    return threading.active_count()
"""
    function = await load_function(source)
    for _ in range(20):
        assert (await function.call(timeout_s=5)).result == b"1"


async def test_reuse_keeps_the_process_and_its_globals(load_function, mode):
    source = "import os\nN = 0\ndef handle(event, context):\n    global N\n    N += 1\n    return [N, os.getpid()]"
    function = await load_function(source, mode=mode, isolation="reuse")
    answers = [json.loads((await function.call()).result) for _ in range(10)]
    assert [n for n, _ in answers] == list(range(1, 11))
    assert len({pid for _, pid in answers}) == 1


async def test_fresh_serves_one_call_and_then_is_spent(load_function, mode):
    function = await load_function("def handle(event, context): return 1", mode=mode, isolation="fresh")
    assert (await function.call()).result == b"1"
    with pytest.raises(SandboxSpent):
        await function.call()
    assert not function.sandbox.usable


async def test_an_error_tells_type_message_and_the_users_frames(load_function, mode):
    source = """
import json
def inner():
    json.loads("{")
def handle(event, context):
    try:
        inner()
    except ValueError as error:
        raise RuntimeError("grüße") from error
"""
    function = await load_function(source, mode=mode)
    finished = await function.call()
    assert (finished.reason, finished.error_type, finished.error_message) == ("error", "RuntimeError", "grüße")
    assert "/code/main.py" in finished.traceback
    assert "in inner" in finished.traceback
    assert "direct cause" in finished.traceback
    assert "/opt/hearth" not in finished.traceback
    assert finished.result == b""


BAD_ENDS = [
    ("import sys; sys.exit(3)", "SystemExit", "sys.exit(3)"),
    ("import os; os._exit(4)", "Exited", "exited with status 4 before it answered"),
    ("import os; os.kill(os.getpid(), 9)", "Exited", "killed by SIGKILL"),
    ("import ctypes; ctypes.string_at(0)", "Exited", "killed by SIGSEGV"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
    ("class E(Exception):\n  def __str__(self): raise ValueError\nraise E", "E", "could not be made"),
    ("raise Exception('x' * 10_000_000)", "Exception", "xxx"),
    ("def f(): f()\nf()", "RecursionError", "maximum recursion"),
    ("raise UnicodeDecodeError('utf-8', b'\\xff', 0, 1, '\\ud800')", "UnicodeDecodeError", "ud800"),
    ("x = 1 +", "SyntaxError", "invalid syntax"),
    ("raise ExceptionGroup('several', [ValueError(1), KeyError(2)])", "ExceptionGroup", "several"),
]


@pytest.mark.parametrize("isolation", ["process", "reuse"])
async def test_every_bad_end_is_an_error_and_the_next_call_works(load_function, isolation):
    function = await load_function("def handle(event, context):\n    exec(event, {})\n    return 'fine'", isolation=isolation)
    for body, kind, said in BAD_ENDS:
        finished = await function.call(json.dumps(body).encode())
        assert (finished.reason, finished.error_type) == ("error", kind)
        assert said in finished.error_message
        assert len(finished.error_message) < 10_000
        assert len(finished.traceback) < 40_000
        assert (await function.call(b'"pass"')).result == b"fine"


BAD_RESULTS = [
    "float('nan')",
    "float('inf')",
    "{1, 2}",
    "object()",
    "{'a': object}",
    "10 ** 5000",
    "__import__('functools').reduce(lambda a, _: [a], range(100_000), 0)",
    "(lambda a: (a.append(a), a)[1])([])",
    "(__import__('sys').setrecursionlimit(10**6), __import__('functools').reduce(lambda a, _: [a], range(100_000), 0))[1]",
    "{float('nan'): 1}",
    "'\\ud800'",
]


@pytest.mark.parametrize("isolation", ["process", "reuse"])
async def test_a_result_that_is_none_is_a_bad_result(load_function, isolation):
    function = await load_function("def handle(event, context): return eval(event)", isolation=isolation)
    for value in BAD_RESULTS:
        began = time.monotonic()
        finished = await function.call(json.dumps(value).encode())
        assert (value, finished.reason) == (value, "bad_result")
        assert time.monotonic() - began < 2
        assert (await function.call(b'"[1, {}]"')).result == b"[1,{}]"


async def test_results_and_events_of_any_size_and_content(load_function, make_heard, mode):
    function = await load_function("def handle(event, context): return event", mode=mode)
    for size in (0, 1, 65_535, 65_536, 131_072, 131_073, 262_144, 262_145, 3_000_000):
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        heard = make_heard()
        finished = await function.call(body, content_type="application/octet-stream", heard=heard)
        assert finished.reason is None
        if size > 262_144:
            assert heard.asked_large == 1
            assert b"".join(heard.large) == body
            assert finished.result == b""
        else:
            assert heard.asked_large == 0
            assert finished.result == body
        assert finished.usage.bytes_in == finished.usage.bytes_out == size


async def test_a_streamed_event_arrives_whole(load_function, mode):
    async def pieces():
        for at in range(50):
            yield bytes([at]) * 100_000

    source = "import hashlib\ndef handle(event, context): return hashlib.sha256(event).hexdigest()"
    function = await load_function(source, mode=mode)
    import hashlib

    expected = hashlib.sha256(b"".join([chunk async for chunk in pieces()])).hexdigest()
    finished = await function.call(pieces(), size=5_000_000, content_type="application/octet-stream")
    assert finished.result.decode() == expected


async def test_a_slow_reader_slows_the_function_and_nothing_piles_up(load_function, make_heard):
    source = """
import time
def handle(event, context):
    began = time.monotonic()
    for n in range(40):
        yield bytes(65536)
    print(time.monotonic() - began)
"""
    function = await load_function(source)
    heard = make_heard(write_delay_s=0.02)
    finished = await function.call(heard=heard)
    assert finished.reason is None
    assert sum(map(len, heard.large)) == 40 * 65536
    assert float(heard.text()) > 0.3


async def test_an_event_that_cannot_be_read_ends_the_call(load_function):
    async def broken():
        yield bytes(300_000)
        raise OSError("gone")

    function = await load_function("def handle(event, context): return len(event)")
    finished = await function.call(broken(), size=1_000_000, timeout_s=None, content_type="application/octet-stream")
    assert finished.reason == "lost"
    assert "gone" in finished.error_message
    assert (await function.call(b"[1]")).result == b"1"


async def test_a_result_that_cannot_be_stored_ends_the_call(load_function, make_heard):
    class Full(make_heard):
        async def write(self, chunk: bytes) -> None:
            raise OSError("full")

    function = await load_function("def handle(event, context):\n    while event: yield bytes(60000)\n    yield 'fine'")
    finished = await function.call(b"1", timeout_s=None, heard=Full())
    assert finished.reason == "lost"
    assert "full" in finished.error_message
    assert (await function.call()).result == b"fine"


async def test_an_http_response_has_status_headers_and_body(load_function):
    source = """
def handle(event, context):
    if event == "plain": return {"path": context.http["path"]}
    if event == "bad": return {"statusCode": 200, "headers": {"x-a": "one\\r\\nset-cookie: b"}}
    if event == "status": return {"statusCode": "many"}
    return {"statusCode": 201, "headers": {"Content-Type": "image/png", "x-n": 1}, "cookies": ["a=b"],
            "body": "AP8=", "isBase64Encoded": True}
"""
    function = await load_function(source)
    http = {"method": "GET", "path": "/a", "query": "", "headers": []}
    finished = await function.call(b"1", http=http)
    assert (finished.http_status, finished.content_type, finished.result) == (201, "image/png", b"\x00\xff")
    assert ("x-n", "1") in finished.http_headers
    assert ("set-cookie", "a=b") in finished.http_headers
    assert (await function.call(b'"bad"', http=http)).reason == "bad_result"
    assert (await function.call(b'"status"', http=http)).reason == "bad_result"
    assert json.loads((await function.call(b'"plain"', http=http)).result) == {"path": "/a"}
    # Called otherwise, the same value is only a value.
    assert json.loads((await function.call(b"1")).result)["statusCode"] == 201


async def test_a_function_emits_events_and_learns_of_refusals(load_function, make_heard, mode):
    source = """
def handle(event, context):
    context.emit("camera.motion", {"n": 1})
    context.emit("camera.raw", b"\\x00")
    try:
        context.emit("refused", "text")
    except Exception as error:
        return [type(error).__name__, str(error)]
"""
    function = await load_function(source, mode=mode)
    heard = make_heard()
    finished = await function.call(heard=heard)
    assert json.loads(finished.result) == ["EmitRefused", "no such subject"]
    assert heard.emitted == [
        ("camera.motion", b'{"n":1}', "application/json"),
        ("camera.raw", b"\x00", "application/octet-stream"),
    ]


async def test_output_files_are_refused_where_nobody_takes_them(load_function):
    function = await load_function("def handle(event, context): context.output('a.bin')")
    finished = await function.call()
    assert (finished.reason, finished.error_type) == ("error", "OutputRefused")


async def test_a_context_log_is_a_line_of_json(load_function, make_heard):
    source = "def handle(event, context):\n    context.log('hi', n=1)\n    context.log.error('x', o=object, f=float('nan'))"
    function = await load_function(source)
    heard = make_heard()
    assert (await function.call(heard=heard)).reason is None
    first, second = [json.loads(line) for line in heard.text("log").splitlines()]
    assert (first["message"], first["level"], first["n"]) == ("hi", "info", 1)
    assert (second["level"], second["f"]) == ("error", "nan")


@pytest.mark.parametrize(
    ("source", "kind", "handler"),
    [
        ("import nothing_here", "ModuleNotFoundError", "main:handle"),
        ("def handle(event, context)", "SyntaxError", "main:handle"),
        ("x = 1", "AttributeError", "main:handle"),
        ("handle = 1", "TypeError", "main:handle"),
        ("import sys; sys.exit(2)", "SystemExit", "main:handle"),
        ("import os; os._exit(2)", "Exited", "main:handle"),
        ("def handle(event, context): pass", "ModuleNotFoundError", "other:handle"),
    ],
)
async def test_code_that_does_not_start_says_why(load_function, source, kind, handler, mode):
    with pytest.raises(SandboxError) as caught:
        await load_function(source, handler=handler, mode=mode)
    assert caught.value.error_type == kind
    assert "/opt/hearth" not in caught.value.traceback


@pytest.mark.parametrize("name", ["../out.py", "/abs.py", "a/../../b.py", "a\\b.py"])
async def test_a_bundle_that_leaves_its_folder_is_refused(load_function, name):
    with pytest.raises(SandboxError) as caught:
        await load_function(zipped({"main.py": "def handle(event, context): pass", name: "x"}), kind="zip")
    assert "outside" in str(caught.value)


async def test_links_and_broken_archives_are_refused(load_function):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    for kind, bundle in (("tar.gz", data.getvalue()), ("tar.gz", b"no archive"), ("zip", b"no archive")):
        with pytest.raises(SandboxError):
            await load_function(bundle, kind=kind)


async def test_what_the_import_printed_is_in_the_first_calls_log(load_function, make_heard, mode):
    function = await load_function("print('importing')\ndef handle(event, context): print('calling')", mode=mode)
    heard = [make_heard(), make_heard()]
    for each in heard:
        await function.call(heard=each)
    assert heard[0].text() == b"importing\ncalling\n"
    assert heard[1].text() == b"calling\n"


async def test_calls_do_not_disturb_each_other_across_sandboxes(load_function):
    functions = [await load_function(f"def handle(event, context): return [{n}, event]") for n in range(3)]

    async def many(n: int) -> None:
        for at in range(30):
            assert json.loads((await functions[n].call(str(at).encode())).result) == [n, at]

    await asyncio.gather(*(many(n) for n in range(3)))


def zipped(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()


def tarred(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return data.getvalue()
