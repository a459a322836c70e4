"""The supervisor: owns the link, forwards frames to children, sees to it that nothing of a call is left behind.

One thread, one loop. It never imports, unpacks or parses anything a function made: what a child sends is checked by
its frame header alone and passed on. A child that breaks the protocol is killed.
"""

import os
import struct
import sys
from _signal import SIGKILL, SIGTERM

import hearth_frames as frames
import hearth_json
import hearth_processes as processes
from hearth_calls import Call, Child, Zygote, ending, failure
from hearth_link import READ_BYTES, Link
from hearth_loop import Loop
from hearth_sockets import send_fds, socketpair

#: How long output is let gather in its pipe after a read that emptied it, seconds: a chatty function wakes us rarely.
LOG_GATHER_S = 0.02
#: When to look again, after a call, for processes that are about to end by themselves, seconds.
LEFT_BEHIND_LOOKS_S = (0.002, 0.005, 0.01, 0.02, 0.05)
#: A child that will not end after its answer is killed after this time, seconds.
EXIT_S_MAX = 0.5
#: How long removing a call's files may take before the sandbox is given up, seconds.
CLEAN_S_MAX = 5.0
#: Events a function may have emitted without waiting for their acceptance.
EMITS_MAX = 16
#: Children in a row that may end before they are called.
FAILED_FORKS_MAX = 3

FORK = struct.Struct(">BI")
FORKED = struct.Struct(">II")
ENDED = struct.Struct(">IiQI")

_FROM_CHILD = frozenset((frames.RESULT, frames.RESULT_DATA, frames.LOG, frames.EMIT, frames.OUTPUT_OPEN, frames.OUTPUT))
_BULK = frozenset((frames.RESULT_DATA, frames.OUTPUT))


class Supervisor:
    def __init__(self, link_in, link_out, zygote, folders, *, keyed):
        self._loop = Loop()
        self._link = Link(self._loop, link_in, link_out, self._on_frame, self._lost)
        self._zygote = Zygote(*zygote)
        self._folders = folders
        self._keyed = keyed
        self._greeted = False
        self._spec = None
        self._code = None
        self._loaded = False
        self._once = self._fresh = True
        self._concurrency = 1
        self._load_call = Call(0)
        self._calls = {}
        self._children = {}
        self._idle = []
        self._tokens = 0
        self._forking = 0
        self._failed_forks = 0
        self._expected = {os.getpid(), self._zygote.pid}
        self._settling = []
        self._looks = 0
        self._cleaner = 0
        self._spent = None

    def run(self):
        self._zygote.control.setblocking(False)
        self._loop.reading(self._zygote.control.fileno(), self._read_zygote)
        self._watch_output(self._zygote.pipes, lambda: self._load_call)
        self._loop.run()

    def _lost(self, why):
        """End, and take everything along."""
        if why:
            sys.stderr.write(f"hearth: {why}\n")
        for pid in [self._zygote.pid, *(child.pid for child in self._children.values())]:
            processes.signal_group(pid, SIGKILL)
        os._exit(1 if why else 0)

    # -- frames from the executor

    def _on_frame(self, kind, flags, stream, number, payload):
        if kind == frames.CALL:
            self._begin(number, payload)
        elif kind == frames.CREDIT:
            self._credited(number, stream, payload)
        elif kind == frames.EVENT:
            self._event(number, flags, payload)
        elif kind in (frames.EMIT_ACK, frames.OUTPUT_ACK):
            self._acknowledged(number, kind, stream, payload)
        elif kind == frames.STOP:
            self._stop(number, payload)
        elif kind == frames.CODE:
            self._take_code(flags, payload)
        elif kind == frames.LOAD:
            self._load(payload)
        elif kind == frames.HELLO and not self._greeted:
            self._greet(payload)
        else:
            raise frames.ProtocolError(f"a frame of type {kind} out of turn")

    def _greet(self, payload):
        hello = hearth_json.loads(payload)
        if hello.get("protocol") != frames.PROTOCOL:
            raise frames.ProtocolError("another protocol")
        if self._keyed:
            self._link.use_key(bytes.fromhex(hello["key"]))
        self._greeted = True
        version = ".".join(map(str, sys.version_info[:3]))
        answer = {"protocol": frames.PROTOCOL, "runtime": "python", "version": version, "pid": os.getpid()}
        self._link.send(frames.encode(frames.HELLO, hearth_json.dumps(answer)))

    def _load(self, payload):
        if self._spec is not None:
            raise frames.ProtocolError("a second load")
        self._spec = payload
        spec = hearth_json.loads(payload)
        self._once = spec["isolation"] != "reuse"
        self._fresh = spec["isolation"] == "fresh"
        self._concurrency = int(spec.get("concurrency", 1))
        self._code = os.memfd_create("code", os.MFD_CLOEXEC)

    def _take_code(self, flags, payload):
        if self._code is None:
            raise frames.ProtocolError("code before its load message")
        _write_all(self._code, payload)
        if payload:
            self._link.give_credit(0, frames.CODE, 0, len(payload))
        if flags & frames.END:
            spec = os.memfd_create("spec", os.MFD_CLOEXEC)
            _write_all(spec, self._spec)
            send_fds(self._zygote.control, b"L", spec, self._code)
            os.close(spec)
            os.close(self._code)
            self._code, self._spec = None, b""

    def _credited(self, number, stream, payload):
        kind, size = frames.CREDIT_BODY.unpack(payload)
        call = self._load_call if number == 0 else self._calls.get(number)
        if call is None:
            return
        call.add_credit(kind, stream, size)
        if kind == frames.LOG:
            self._send_log(call)
        elif call.child is not None and call.child.paused:
            child = call.child
            child.paused = False
            self._loop.reading(child.fd, lambda: self._read_child(child))
            self._take_frames(child)
            self._finish_ended(child)

    def _begin(self, number, payload):
        if not self._loaded or number in self._calls or len(self._calls) >= self._concurrency or self._spent:
            raise frames.ProtocolError("a call out of turn")
        call = self._calls[number] = Call(number)
        child = self._idle.pop() if self._idle else self._fork()
        if not self._once:
            # What a reused child printed between calls belongs to no call.
            for fd in child.pipes:
                self._drain(fd, 0, None)
        child.call, call.child = call, child
        self._to_child(child, frames.encode(frames.CALL, payload, number))

    def _event(self, number, flags, payload):
        call = self._calls.get(number)
        if call is None or call.final is not None or call.child.ended is not None:
            return  # the call is over: what was under way for it is dropped
        call.child.event_bytes += len(payload)
        self._to_child(call.child, frames.encode(frames.EVENT, payload, number, 0, flags))

    def _acknowledged(self, number, kind, stream, payload):
        call = self._calls.get(number)
        if call is not None and call.final is None:
            if kind == frames.EMIT_ACK:
                call.emits -= 1
            self._to_child(call.child, frames.encode(kind, payload, number, stream))

    def _stop(self, number, payload):
        call = self._calls.get(number)
        if call is None or call.stopping or call.final is not None:
            return
        call.stopping = True
        call.grace_s = hearth_json.loads(payload)["grace_ms"] / 1000
        self._terminate(call)

    def _terminate(self, call):
        child = call.child
        if not child.pid:
            return  # comes back when the zygote has told the pid
        processes.signal_group(child.pid, SIGTERM)
        self._loop.later(call.grace_s, lambda: self._kill(child))

    def _kill(self, child):
        if child.ended is None and child.pid:
            processes.signal_group(child.pid, SIGKILL)

    # -- frames from and to children

    def _to_child(self, child, frame):
        if child.outgoing:
            child.outgoing += frame
        else:
            child.outgoing = frame
            self._flush_child(child)

    def _flush_child(self, child):
        while child.outgoing:
            try:
                child.outgoing = child.outgoing[child.sock.send(child.outgoing) :]
            except BlockingIOError:
                break
            except OSError:
                child.outgoing = b""
        self._loop.writing(child.fd, (lambda: self._flush_child(child)) if child.outgoing else None)
        if child.event_bytes and not child.outgoing and child.call is not None:
            self._link.give_credit(child.call.number, frames.EVENT, 0, child.event_bytes)
            child.event_bytes = 0

    def _read_child(self, child):
        """Take what has come. True when there may be more."""
        try:
            data = child.sock.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.reading(child.fd, None)
            return False
        child.incoming = child.incoming + data if child.incoming else data
        self._take_frames(child)
        return True

    def _take_frames(self, child):
        while len(child.incoming) >= frames.HEADER_BYTES and not child.paused:
            size, kind, _, stream, number = frames.HEADER.unpack_from(child.incoming)
            call = child.call
            if not _may_send(call, kind, number, size):
                self._break(child)
                return
            end = frames.HEADER_BYTES + size
            if len(child.incoming) < end:
                return
            if kind in _BULK:
                if call.credit(kind, stream) < size:
                    # It waits in its socket's buffer: its reader's slowness is nobody else's.
                    child.paused = True
                    self._loop.reading(child.fd, None)
                    return
                call.add_credit(kind, stream, -size)
                call.streamed = True
            frame, child.incoming = child.incoming[:end], child.incoming[end:]
            if kind == frames.RESULT:
                self._answer(call, frame)
            elif kind == frames.LOG:
                self._log(call, frames.LOGGER, frame[frames.HEADER_BYTES :])
            else:
                call.emits += kind == frames.EMIT
                self._link.send(frame, bulk=kind in _BULK)

    def _break(self, child):
        """Whatever writes frames that no runtime writes is not trusted with another one."""
        self._spent = self._spent or "a process broke the protocol"
        self._loop.reading(child.fd, None)
        child.incoming = b""
        self._kill(child)
        if child.call is not None and child.call.final is None:
            self._answer(child.call, failure(child.call, "ProtocolError", "the process broke the protocol"))

    # -- output

    def _watch_output(self, pipes, whose):
        for fd, stream in pipes.items():
            os.set_blocking(fd, False)
            self._loop.reading(fd, lambda fd=fd, stream=stream: self._read_output(pipes, fd, stream, whose))

    def _read_output(self, pipes, fd, stream, whose):
        if not self._drain(fd, stream, whose()):
            return

        def again():
            if fd in pipes:
                self._loop.reading(fd, lambda: self._read_output(pipes, fd, stream, whose))

        self._loop.reading(fd, None)
        self._loop.later(LOG_GATHER_S, again)

    def _drain(self, fd, stream, call):
        """Read a pipe until it is empty, a flood for a while only. True when it was emptied and is still open."""
        for _ in range(16):
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                self._loop.reading(fd, None)
                return False
            if call is not None:
                self._log(call, stream, data)
        return False

    def _log(self, call, stream, data):
        truncated = call.log(stream, data)
        if call.final is None:
            self._send_log(call)
        if truncated is not None:
            self._link.send(truncated)

    def _send_log(self, call):
        for frame in call.take_log():
            self._link.send(frame)
        if call.final is not None and call.log_is_out and call.number in self._calls:
            # A result that ends a streamed body follows its data; any other goes ahead of all bulk data.
            self._link.send(call.final, bulk=call.streamed)
            self._release(call)

    # -- the end of a call

    def _answer(self, call, frame):
        """The result is known: the call's log goes out, then the result, then the sandbox is put in order."""
        for fd, stream in call.child.pipes.items():
            self._drain(fd, stream, call)
        call.final = frame
        self._send_log(call)

    def _release(self, call):
        child = call.child
        del self._calls[call.number]
        self._settling.append(call)
        child.call = None
        if self._once or child.ended is not None or self._spent:
            self._retire(child)
            if not self._fresh:
                self._fork_ahead()
        else:
            self._idle.append(child)
        self._failed_forks = 0
        self._looks = 0
        self._settle()

    def _settle(self):
        """Tell the executor that the sandbox may serve again, once nothing of the finished calls is left."""
        if not self._settling or self._cleaner:
            return
        if self._fresh:
            self._spent = self._spent or "fresh"
        if self._spent is None:
            if self._forking or any(child.retired for child in self._children.values()):
                return  # comes back when the zygote has told of them
            if self._left_behind():
                if self._looks < len(LEFT_BEHIND_LOOKS_S):
                    self._loop.later(LEFT_BEHIND_LOOKS_S[self._looks], self._settle)
                    self._looks += 1
                    return
                self._spent = "processes left running"
            elif not self._calls and not processes.empty(self._folders.emptied):
                self._clean_apart()
                return
        payload = b"" if self._spent is None else hearth_json.dumps({"spent": self._spent})
        for call in self._settling:
            self._link.send(frames.encode(frames.SETTLED, payload, call.number), bulk=call.streamed)  # after its result
        self._settling = []

    def _left_behind(self):
        processes.reap()
        busy = {child.pid for child in self._children.values() if child.call is not None}
        idle = {child.pid for child in self._children.values() if child.call is None}
        return processes.leftovers(os.getpid(), self._expected | idle, busy)

    def _clean_apart(self):
        pid = self._cleaner = processes.empty_apart(self._folders.emptied)
        watch = os.pidfd_open(pid)

        def ended():
            self._loop.forget(watch)
            os.close(watch)
            _, status = os.waitpid(pid, 0)
            self._cleaner = 0
            if status != 0:
                self._spent = self._spent or "files that would not go"
            self._settle()

        self._loop.reading(watch, ended)
        self._loop.later(CLEAN_S_MAX, lambda: self._cleaner == pid and os.kill(pid, SIGKILL))

    # -- children

    def _fork(self):
        """Ask the zygote for a child."""
        mine, its = socketpair()
        out, out_w = os.pipe()
        err, err_w = os.pipe()
        self._tokens += 1
        child = self._children[self._tokens] = Child(self._tokens, mine, out, err)
        self._forking += 1
        try:
            send_fds(self._zygote.control, FORK.pack(ord("F"), child.token), its.fileno(), out_w, err_w)
        except OSError:
            self._spent = self._spent or "the zygote ended"
        its.close()
        os.close(out_w)
        os.close(err_w)
        mine.setblocking(False)
        self._loop.reading(child.fd, lambda: self._read_child(child))
        self._watch_output(child.pipes, lambda: child.call)
        return child

    def _fork_ahead(self):
        if not self._idle and not self._spent and len(self._calls) < self._concurrency:
            self._idle.append(self._fork())

    def _retire(self, child):
        """No further call goes to this child; it has a moment to end by itself."""
        child.retired = True
        if child.ended is None:
            self._loop.later(EXIT_S_MAX, lambda: self._kill(child))
        else:
            self._close(child)

    def _close(self, child):
        if child.closed:
            return
        child.closed = True
        del self._children[child.token]
        self._loop.forget(child.fd)
        child.sock.close()
        for fd in child.pipes:
            self._loop.forget(fd)
            os.close(fd)
        child.pipes.clear()

    # -- what the zygote tells

    def _read_zygote(self):
        while True:
            try:
                message = self._zygote.control.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            kind, body = message[:1], message[1:]
            if kind == b"P":
                self._forked(*FORKED.unpack(body))
            elif kind == b"D":
                token, *ended = ENDED.unpack(body)
                self._child_ended(token, tuple(ended))
            elif kind == b"K":
                self._zygote_loaded(body)
            else:
                self._loop.reading(self._zygote.control.fileno(), None)
                self._zygote_ended()
                return

    def _zygote_loaded(self, answer):
        for fd, stream in self._zygote.pipes.items():
            self._drain(fd, stream, self._load_call)
        if hearth_json.loads(answer)["ok"]:
            self._loaded = True
            # What the code started while it was imported is part of it, and stays as long as the sandbox.
            self._expected.update(processes.leftovers(os.getpid(), self._expected, frozenset()))
            self._fork_ahead()
        self._link.send(frames.encode(frames.LOADED, answer))

    def _zygote_ended(self):
        try:
            _, status = os.waitpid(self._zygote.pid, 0)
        except ChildProcessError:
            status = -1
        if not self._loaded:
            error = {"type": "Exited", "message": f"the import {ending(status)}", "traceback": ""}
            self._zygote_loaded(hearth_json.dumps({"ok": False, "error": error}))
        self._spent = self._spent or "the zygote ended"
        self._forking = 0
        for child in list(self._children.values()):
            self._kill(child)
            self._child_ended(child.token, (status, 0, 0))
        self._settle()

    def _forked(self, token, pid):
        self._forking -= 1
        child = self._children[token]
        child.pid = pid
        if pid == 0:
            self._child_ended(token, (-1, 0, 0))
        elif child.call is not None and child.call.stopping:
            self._terminate(child.call)
        self._settle()

    def _child_ended(self, token, ended):
        child = self._children.get(token)
        if child is None or child.ended is not None:
            return
        child.ended = ended
        if child.call is not None:
            self._finish_ended(child)
        else:
            if child in self._idle:
                self._idle.remove(child)
                self._failed_forks += 1
                if self._failed_forks >= FAILED_FORKS_MAX:
                    self._spent = self._spent or "its processes end before they are called"
                self._fork_ahead()
            self._close(child)
        self._settle()

    def _finish_ended(self, child):
        """What a child wrote before it ended counts; when its result is not among it, there is none."""
        if child.ended is None or child.call is None:
            return
        call = child.call
        while not child.paused and child.call is call and self._read_child(child):
            pass
        if not child.paused and child.call is call and call.final is None:
            self._answer(call, failure(call, "Exited", f"the process {ending(child.ended[0])}", child.ended))


def _may_send(call, kind, number, size):
    if call is None or number != call.number or call.final is not None or kind not in _FROM_CHILD:
        return False
    if kind in _BULK:
        return size <= frames.DATA_BYTES_MAX
    return size <= frames.PAYLOAD_BYTES_MAX and not (kind == frames.EMIT and call.emits >= EMITS_MAX)


def _write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]
