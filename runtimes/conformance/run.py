"""Holds a runtime to the protocol: plays every transcript against it.

    python3 run.py functions/python python3 -I -S ../python/supervisor.py

The rest of the command line starts a supervisor; `fd:<n>` and a folder are added to it. Exit status 0: everything held.
Only for trying a runtime out on a developer's machine: the functions run with no sandbox around them here.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE))


def transcripts():
    """Every transcript by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "transcripts").glob("*.json"))}


def make_bytes(value):
    """A body as transcripts write it: text, {"hex"}, {"json"}, or {"repeat": [text, times]}."""
    if isinstance(value, str):
        return value.encode()
    if "hex" in value:
        return bytes.fromhex(value["hex"])
    if "json" in value:
        return json.dumps(value["json"]).encode()
    text, times = value["repeat"]
    return text.encode() * times


def play(client, transcript, functions):
    """Run one transcript over a greeted client. Yields what did not hold."""
    source = next(functions.glob(f"{transcript['function']}.*"))
    spec = {
        "tenant": "acme", "function": "probe", "version": 3, "handler": "main:handle", "isolation": "process", "concurrency": 1,
        "memory_mb": 128, "env": {}, **transcript.get("load", {}),
    }  # fmt: skip
    code = source.read_bytes()
    spec["code"] = {"kind": "file", "filename": "main" + source.suffix, "size": len(code)}
    loaded = client.load(spec, code)
    wanted = transcript.get("loaded", {"ok": True})
    if loaded.head.get("ok") != wanted["ok"]:
        yield f"LOADED was {loaded.head}"
        return
    if not wanted["ok"]:
        if not loaded.head["error"]["message"]:
            yield "a load that failed does not say why"
        return
    if "log" in wanted and loaded.logs["stdout"] != wanted["log"].encode():
        yield f"the load logged {loaded.logs['stdout']!r}"
    seen = []
    for at, step in enumerate(transcript["calls"]):
        answer = client.call(
            step.get("head", {}), make_bytes(step.get("body", "null")), streamed=step.get("streamed", False),
            stop_after_s=step.get("stop_after_s"), grace_s=step.get("grace_s", 0.3), slow_s=step.get("slow_s", 0.0),
        )  # fmt: skip
        seen.append(answer)
        for problem in check(answer, step["expect"], seen):
            yield f"call {at + 1}: {problem}"


def check(answer, expect, seen):
    head = answer.head
    body = answer.data if head.get("size") is not None else answer.body
    values = {
        "reason": head.get("reason"), "content_type": head.get("content_type"), "status": head.get("status"),
        "error_type": (head.get("error") or {}).get("type"), "truncated": answer.truncated, "signal": head.get("signal", 0),
    }  # fmt: skip
    for key, value in values.items():
        if key in expect and value != expect[key]:
            yield f"{key} is {value!r}, not {expect[key]!r} ({head})"
    if "body" in expect and body != make_bytes(expect["body"]):
        yield f"the body is {body[:200]!r} ({len(body)} bytes) ({head})"
    if "json" in expect and (not body or json.loads(body) != expect["json"]):
        yield f"the body is {body[:200]!r}, not {expect['json']!r} ({head})"
    for stream, text in expect.get("log", {}).items():
        if answer.logs[stream] != make_bytes(text):
            yield f"{stream} is {answer.logs[stream][:200]!r}"
    if "log_bytes" in expect and sum(map(len, answer.logs.values())) != expect["log_bytes"]:
        yield f"the log has {sum(map(len, answer.logs.values()))} bytes"
    if "first_log_s_max" in expect and (answer.first_log_s is None or answer.first_log_s > expect["first_log_s_max"]):
        yield f"the first log came after {answer.first_log_s} s"
    if "took_s_max" in expect and answer.took_s > expect["took_s_max"]:
        yield f"it took {answer.took_s:.2f} s"
    if "emitted" in expect and [[subject, kind, data.decode()] for subject, kind, data in answer.emitted] != expect["emitted"]:
        yield f"emitted {answer.emitted}"
    if "files" in expect:
        files = {name: content.decode() for name, content, ended in answer.files.values() if ended}
        if files != expect["files"]:
            yield f"files are {files}"
    if "spent" in expect and (answer.spent is not None) != expect["spent"]:
        yield f"spent is {answer.spent!r}"
    if "unlike_call" in expect and body == (seen[expect["unlike_call"] - 1].body or seen[expect["unlike_call"] - 1].data):
        yield "the same body as another call, which had to differ"
    if head.get("reason") is None and "cpu_us" not in head:
        yield "no cpu_us"


def main(functions, command):
    from client import Broken, Client

    failed = 0
    for name, transcript in transcripts().items():
        root = Path(tempfile.mkdtemp(prefix="conformance-"))
        for folder in ("code", "tmp", "output"):
            (root / folder).mkdir()
        ours, its = socket.socketpair()
        process = subprocess.Popen([*command, f"fd:{its.fileno()}", str(root)], pass_fds=[its.fileno()])
        its.close()
        client = Client(ours.fileno(), ours.fileno())
        try:
            client.greet()
            problems = list(play(client, transcript, functions))
        except Broken as broken:
            problems = [f"broke the protocol: {broken}"]
        ours.close()
        process.wait(10)
        os.chmod(root / "code", 0o755)
        shutil.rmtree(root, ignore_errors=True)
        print(f"{'ok  ' if not problems else 'FAIL'} {name}: {transcript['about']}")
        for problem in problems:
            print(f"     {problem}")
        failed += bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
