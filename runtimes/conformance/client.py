"""An executor's end of the protocol, as plainly as it can be written: one blocking stream, one frame at a time.

It depends on nothing but the standard library, and holds a sandbox to every rule of `protocol.md` that can be seen from
outside: credit, order, sizes, codes.
"""

import hashlib
import json
import os
import select
import struct
import time
from collections import defaultdict

HEADER = struct.Struct(">IBBHI")
HELLO, LOAD, CODE, LOADED, CALL, EVENT, RESULT, RESULT_DATA, LOG, EMIT, EMIT_ACK = range(1, 12)
OUTPUT_OPEN, OUTPUT_ACK, OUTPUT, STOP, SETTLED, CREDIT = range(12, 18)
END, TRUNCATED = 1, 2
WINDOW, DATA_MAX, PAYLOAD_MAX, LOG_MAX = 256 * 1024, 64 * 1024, 1024 * 1024, 1024 * 1024
STREAMS = {1: "stdout", 2: "stderr", 3: "log"}


class Broken(Exception):
    """The sandbox broke a rule."""


class Answer:
    """Everything a call, or a load, came to."""

    def __init__(self):
        self.head = {}
        self.body = b""
        self.data = b""
        self.logs = defaultdict(bytes)
        self.first_log_s = None
        self.truncated = False
        self.emitted = []
        self.files = {}
        self.spent = None
        self.took_s = 0.0


class Client:
    """`read_fd` and `write_fd` may be the same. With a key, every frame after HELLO carries a code."""

    def __init__(self, read_fd, write_fd, *, key=None):
        self._in, self._out = read_fd, write_fd
        self._key = key
        self._codes = [0, 0]
        self._buffer = b""
        self._credit = {}
        self._spent = defaultdict(int)
        self._owed = set()
        self._calls = 0

    # -- frames

    def send(self, kind, payload=b"", call=0, stream=0, flags=0):
        frame = HEADER.pack(len(payload), kind, flags, stream, call) + payload
        if self._key is not None and kind != HELLO:
            frame += self._code(1, frame)
        view = memoryview(frame)
        while view:
            view = view[os.write(self._out, view) :]

    def receive(self, timeout_s=30.0):
        """The next frame, or None when the link was closed."""
        give_up = time.monotonic() + timeout_s
        trailer = 16 if self._key is not None else 0
        while True:
            if len(self._buffer) >= HEADER.size:
                size, kind, flags, stream, call = HEADER.unpack_from(self._buffer)
                if size > PAYLOAD_MAX:
                    raise Broken(f"a payload of {size} bytes")
                end = HEADER.size + size
                if len(self._buffer) >= end + trailer:
                    frame, code = self._buffer[:end], self._buffer[end : end + trailer]
                    self._buffer = self._buffer[end + trailer :]
                    if trailer and code != self._code(2, frame):
                        raise Broken("a wrong code")
                    return kind, flags, stream, call, frame[HEADER.size :]
            left = give_up - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                raise Broken(f"no frame within {timeout_s} s")
            more = os.read(self._in, 1 << 18)
            if not more:
                return None
            self._buffer += more

    def _code(self, direction, frame):
        number = self._codes[direction - 1]
        self._codes[direction - 1] += 1
        state = hashlib.blake2b(bytes([direction]) + number.to_bytes(8, "big"), digest_size=16, key=self._key)
        state.update(frame)
        return state.digest()

    # -- what an executor does

    def greet(self):
        hello = {"protocol": 1, **({"key": self._key.hex()} if self._key else {})}
        self.send(HELLO, json.dumps(hello).encode())
        kind, _, _, _, payload = self._next()
        answer = json.loads(payload)
        if kind != HELLO or answer.get("protocol") != 1:
            raise Broken("no HELLO of protocol 1")
        return answer

    def load(self, spec, code, timeout_s=60.0):
        self.send(LOAD, json.dumps(spec).encode())
        answer = Answer()
        self._send_data(CODE, 0, code, answer)
        while True:
            kind, flags, stream, call, payload = self._next(timeout_s)
            if kind == LOADED:
                answer.head = json.loads(payload)
                return answer
            self._take(answer, kind, flags, stream, call, payload, 0)

    def call(self, head, body, *, streamed=False, stop_after_s=None, grace_s=1.0, timeout_s=60.0, slow_s=0.0):
        """Until SETTLED. `slow_s`: give no credit before nothing more has come for so long, like a slow reader."""
        self._calls += 1
        number, answer, began = self._calls, Answer(), time.monotonic()
        full = {
            "job": f"job-{number}", "attempt": 1, "deadline": None, "start": "warm", "content_type": "application/json",
            "traceparent": "", "http": None, "size": len(body), "streamed": streamed, **head,
        }  # fmt: skip
        text = json.dumps(full).encode()
        self.send(CALL, struct.pack(">I", len(text)) + text + (b"" if streamed else body), number)
        if streamed:
            self._send_data(EVENT, number, body, answer)
        stop_at = None if stop_after_s is None else began + stop_after_s
        ended = False
        while True:
            if stop_at is not None and time.monotonic() >= stop_at:
                self.send(STOP, json.dumps({"grace_ms": int(grace_s * 1000)}).encode(), number)
                stop_at = None
            if stop_at is not None and not self._comes_within(max(0.0, stop_at - time.monotonic())):
                continue
            if slow_s and self._owed and not self._comes_within(slow_s):
                self._pay_all()
            kind, flags, stream, call, payload = self._next(timeout_s)
            if kind == SETTLED:
                if not ended or call != number:
                    raise Broken("SETTLED without its RESULT")
                answer.spent = json.loads(payload)["spent"] if payload else None
                return answer
            if ended:
                raise Broken(f"a frame of type {kind} after RESULT")
            if kind == RESULT:
                ended = True
                answer.took_s = time.monotonic() - began
                if call != number:
                    raise Broken("RESULT of another call")
                answer.head, answer.body = split(payload)
                if answer.head.get("size") is not None and answer.head["size"] != len(answer.data):
                    raise Broken("a size that is not that of its data")
            else:
                if answer.first_log_s is None and kind == LOG:
                    answer.first_log_s = time.monotonic() - began
                self._take(answer, kind, flags, stream, call, payload, number, slow_s)

    def _next(self, timeout_s=30.0):
        frame = self.receive(timeout_s)
        if frame is None:
            raise Broken("the link was closed")
        return frame

    def _comes_within(self, seconds):
        """Whether there is a frame, or some of one, to be had."""
        if len(self._buffer) >= HEADER.size:
            (size,) = struct.unpack_from(">I", self._buffer)
            if len(self._buffer) >= HEADER.size + size + (16 if self._key is not None else 0):
                return True
        return bool(select.select([self._in], [], [], seconds)[0])

    def _send_data(self, kind, call, data, answer):
        channel = (call, kind)
        self._credit[channel] = WINDOW
        for at in range(0, len(data), DATA_MAX):
            chunk = data[at : at + DATA_MAX]
            while self._credit[channel] < len(chunk):
                self._take(answer, *self._next(), call)
            self._credit[channel] -= len(chunk)
            self.send(kind, chunk, call)
        self.send(kind, b"", call, 0, END)

    def _take(self, answer, kind, flags, stream, call, payload, expected, slow_s=0.0):
        if kind == CREDIT:
            what, size = struct.unpack(">BI", payload)
            self._credit[call, what] = self._credit.get((call, what), 0) + size
            if self._credit[call, what] > WINDOW:
                raise Broken("more credit than was spent")
            return
        if call != expected:
            raise Broken(f"a frame of type {kind} for call {call} in call {expected}")
        if kind in (LOG, RESULT_DATA, OUTPUT):
            self._pay(kind, stream, call, len(payload), slow_s)
        if kind == LOG:
            answer.logs[STREAMS[stream]] += payload
            answer.truncated |= bool(flags & TRUNCATED)
            if sum(map(len, answer.logs.values())) > LOG_MAX:
                raise Broken("a log past its cap")
        elif kind == RESULT_DATA:
            answer.data += payload
        elif kind == EMIT:
            head, body = split(payload)
            refused = head["subject"].startswith("refused")
            answer.emitted.append((head["subject"], head["content_type"], body))
            self.send(EMIT_ACK, json.dumps({"ok": False, "error": "refused"} if refused else {"ok": True}).encode(), call)
        elif kind == OUTPUT_OPEN:
            name = json.loads(payload)["name"]
            if name == "refused":
                self.send(OUTPUT_ACK, b'{"ok":false,"error":"refused"}', call, stream)
            else:
                answer.files[stream] = [name, b"", False]
                limit = 100 if name == "limited" else 1 << 30
                self.send(OUTPUT_ACK, json.dumps({"ok": True, "bytes_max": limit}).encode(), call, stream)
        elif kind == OUTPUT:
            answer.files[stream][1] += payload
            answer.files[stream][2] = bool(flags & END)
        else:
            raise Broken(f"a frame of type {kind}")

    def _pay(self, kind, stream, call, size, slow_s):
        channel = (kind, stream, call)
        if size > DATA_MAX:
            raise Broken(f"data of {size} bytes in one frame")
        self._spent[channel] += size
        if self._spent[channel] > WINDOW:
            raise Broken("data without credit")
        if call == 0:
            return  # the log of a load gets no credit back
        self._owed.add(channel)
        if not slow_s and self._spent[channel] >= WINDOW // 2:
            self._pay_all()

    def _pay_all(self):
        for kind, stream, call in self._owed:
            self.send(CREDIT, struct.pack(">BI", kind, self._spent.pop((kind, stream, call))), call, stream)
        self._owed.clear()


def split(payload):
    (size,) = struct.unpack_from(">I", payload)
    return json.loads(payload[4 : 4 + size]), payload[4 + size :]
