"""The supervisor: owns the link, forwards frames to a child, sees to it that nothing of a call is left behind.

One thread, one loop, one call at a time. It never imports, unpacks or parses anything a function made: what a child
sends is checked by its frame header alone and passed on. A child that breaks the protocol is killed.
"""

import os
import sys
from _signal import SIGKILL, SIGTERM
from _socket import MSG_DONTWAIT

import hearth_frames as frames
import hearth_json
import hearth_processes as processes
from hearth_calls import Call, ending, failure
from hearth_children import Zygote
from hearth_link import READ_BYTES, Link
from hearth_loop import Loop
from hearth_output import Output

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

_FROM_CHILD = frozenset((frames.RESULT, frames.RESULT_DATA, frames.LOG, frames.EMIT, frames.OUTPUT_OPEN, frames.OUTPUT))
_BULK = frozenset((frames.RESULT_DATA, frames.OUTPUT))


class Supervisor:
    def __init__(self, link_in, link_out, zygote, folders, *, keyed):
        pid, control, out, err = zygote
        self._loop = Loop()
        self._link = Link(self._loop, link_in, link_out, self._on_frame, self._lost)
        self._output = Output(self._loop, {out: frames.STDOUT, err: frames.STDERR}, self._printed)
        self._zygote = Zygote(
            self._loop,
            pid,
            control,
            on_forked=self._forked,
            on_ended=self._ended,
            on_loaded=self._zygote_loaded,
            on_gone=self._zygote_gone,
        )
        self._folders = folders
        self._keyed = keyed
        self._greeted = False
        self._spec = None
        self._code = None
        self._loaded = False
        self._once = self._fresh = True
        self._load_call = Call(0)
        self._logging = self._load_call
        """Whose log is what is printed now: None between calls."""
        self._call = None
        self._settling = None
        """A call that has ended, until nothing of it is left."""
        self._idle = None
        """The child that waits for the next call."""
        self._failed_forks = 0
        self._expected = {1, os.getpid(), pid}
        self._imports_run = False
        """What the import started may end while it is expected."""
        self._census = None
        self._looks = 0
        self._cleaner = 0
        self._spent = None

    def run(self):
        self._loop.run()

    def _lost(self, why):
        """End, and take everything along."""
        if why:
            sys.stderr.write(f"hearth: {why}\n")
        self._zygote.kill_all()
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
        if self._folders.whole:
            self._census = processes.Census()
        version = ".".join(map(str, sys.version_info[:3]))
        answer = {"protocol": frames.PROTOCOL, "runtime": "python", "version": version, "pid": os.getpid(), "concurrency": 1}
        self._link.send(frames.encode(frames.HELLO, hearth_json.dumps(answer)))

    def _load(self, payload):
        if self._spec is not None:
            raise frames.ProtocolError("a second load")
        self._spec = payload
        spec = hearth_json.loads(payload)
        if spec.get("concurrency", 1) != 1:
            raise frames.ProtocolError("this runtime runs one call at a time")
        self._once = spec["isolation"] != "reuse"
        self._fresh = spec["isolation"] == "fresh"
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
            self._zygote.load(spec, self._code)
            os.close(spec)
            os.close(self._code)
            self._code, self._spec = None, b""

    def _zygote_loaded(self, answer, ok):
        self._output.drain()
        self._logging = None
        if ok:
            self._loaded = True
            # What the code started while it was imported is part of it, and stays as long as the sandbox.
            started, _ = processes.leftovers(os.getpid(), self._expected)
            self._imports_run = bool(started)
            self._expected.update(started)
            self._fork_ahead()
        self._link.send(frames.encode(frames.LOADED, answer))

    def _credited(self, number, stream, payload):
        kind, size = frames.CREDIT_BODY.unpack(payload)
        call = self._call
        if call is None or number != call.number:
            return
        call.add_credit(kind, stream, size)
        if kind == frames.LOG:
            self._send_log(call)
        elif call.child.paused:
            child = call.child
            child.paused = False
            self._loop.reading(child.fd, lambda: self._read_child(child))
            self._take_frames(child)
            self._finish_ended(child)

    def _begin(self, number, payload):
        if self._idle is None or self._call is not None or self._settling is not None or self._spent:
            raise frames.ProtocolError("a call out of turn")
        self._output.discard()
        call = self._call = self._logging = Call(number)
        child, self._idle = self._idle, None
        child.call, call.child = call, child
        self._to_child(child, frames.encode(frames.CALL, payload, number))

    def _running(self, number):
        """The call of that number while it has no result; else None: what was under way for it is dropped."""
        call = self._call
        return call if call is not None and call.number == number and call.final is None else None

    def _event(self, number, flags, payload):
        call = self._running(number)
        if call is not None and call.child.ended is None:
            call.child.event_bytes += len(payload)
            self._to_child(call.child, frames.encode(frames.EVENT, payload, number, 0, flags))

    def _acknowledged(self, number, kind, stream, payload):
        call = self._running(number)
        if call is not None:
            if kind == frames.EMIT_ACK:
                call.emits -= 1
            self._to_child(call.child, frames.encode(kind, payload, number, stream))

    def _stop(self, number, payload):
        call = self._running(number)
        if call is not None and not call.stopping:
            call.stopping = True
            call.grace_s = hearth_json.loads(payload)["grace_ms"] / 1000
            self._terminate(call)

    def _terminate(self, call):
        child = call.child
        if child.pid:  # else again when the zygote has told it
            processes.signal_group(child.pid, SIGTERM)
            self._loop.later(call.grace_s, lambda: self._kill(child))

    def _kill(self, child):
        if child.ended is None and child.pid:
            processes.signal_group(child.pid, SIGKILL)

    # -- frames from and to a child

    def _to_child(self, child, frame):
        if child.outgoing:
            child.outgoing += frame
        elif not child.closed:
            child.outgoing = frame
            self._flush_child(child)

    def _flush_child(self, child):
        waited = child.fd in self._loop.writers
        while child.outgoing:
            try:
                child.outgoing = child.outgoing[child.sock.send(child.outgoing, MSG_DONTWAIT) :]
            except BlockingIOError:
                break
            except OSError:
                child.outgoing = b""
        if waited or child.outgoing:
            self._loop.writing(child.fd, (lambda: self._flush_child(child)) if child.outgoing else None)
        if child.event_bytes and not child.outgoing and child.call is not None:
            self._link.give_credit(child.call.number, frames.EVENT, 0, child.event_bytes)
            child.event_bytes = 0

    def _read_child(self, child):
        """Take what has come. True when there may be more."""
        if child.closed:
            return False
        try:
            data = child.sock.recv(READ_BYTES, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close(child)
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
        self._close(child)
        self._kill(child)
        if child.call is not None and child.call.final is None:
            self._answer(child.call, failure(child.call, "ProtocolError", "the process broke the protocol"))

    def _close(self, child):
        if not child.closed:
            child.closed = True
            child.incoming = child.outgoing = b""
            self._loop.forget(child.fd)
            child.sock.close()

    # -- the log

    def _printed(self, stream, data):
        if self._logging is not None:
            self._log(self._logging, stream, data)

    def _log(self, call, stream, data):
        truncated = call.log(stream, data)
        if call.final is None:
            self._send_log(call)
        if truncated is not None:
            self._link.send(truncated)

    def _send_log(self, call):
        for frame in call.take_log():
            self._link.send(frame)
        if call.final is not None and call.log_is_out and call is self._call:
            # A result that ends a streamed body follows its data; any other goes ahead of all bulk data.
            self._link.send(call.final, bulk=call.streamed)
            self._release(call)

    # -- the end of a call

    def _answer(self, call, frame):
        """The result is known: the call's log goes out, then the result, then the sandbox is put in order."""
        self._output.drain()
        self._logging = None
        call.final = frame
        self._send_log(call)

    def _release(self, call):
        child = call.child
        self._call, self._settling, self._looks = None, call, 0
        self._failed_forks = 0
        child.call = None
        if child.ended is not None or self._once or self._spent:
            self._close(child)
            if child.ended is None:
                self._loop.later(EXIT_S_MAX, lambda: self._kill(child))
        else:
            self._idle = child
        if not self._fresh:
            self._fork_ahead()
        self._settle()

    def _settle(self):
        """Tell the executor that the sandbox may serve again, once nothing of the finished call is left."""
        if self._settling is None or self._cleaner:
            return
        if self._fresh:
            self._spent = self._spent or "fresh"
        if self._spent is None:
            if self._zygote.forking or any(child is not self._idle for child in self._zygote.children.values()):
                return  # comes back when the zygote has told of them
            if self._left_behind():
                if self._looks < len(LEFT_BEHIND_LOOKS_S):
                    self._loop.later(LEFT_BEHIND_LOOKS_S[self._looks], self._settle)
                    self._looks += 1
                    return
                self._spent = "processes left running"
            elif not processes.empty(self._folders.emptied):
                self._clean_apart()
                return
        payload = b"" if self._spent is None else hearth_json.dumps({"spent": self._spent})
        call, self._settling = self._settling, None
        self._link.send(frames.encode(frames.SETTLED, payload, call.number), bulk=call.streamed)  # after its result

    def _left_behind(self):
        expected = self._expected | {self._idle.pid}
        count = self._census.count() if self._census is not None else None
        if count == len(expected) and not self._imports_run:
            return False  # each of them has one thread at least, and lives
        left, seen = processes.leftovers(os.getpid(), expected)
        # More than can be seen: one that never stays one process.
        return bool(left) or (count is not None and self._census.count() > seen)

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

    def _fork_ahead(self):
        if self._idle is not None or self._spent is not None:
            return
        try:
            child = self._idle = self._zygote.fork()
        except OSError:
            self._spent = "the zygote ended"
        else:
            self._loop.reading(child.fd, lambda: self._read_child(child))

    def _forked(self, child):
        if child.call is not None and child.call.stopping:
            self._terminate(child.call)
        self._settle()

    def _ended(self, child):
        if child.call is not None:
            self._finish_ended(child)
            return
        self._close(child)
        if child is self._idle:
            self._idle = None
            self._failed_forks += 1
            if self._failed_forks >= FAILED_FORKS_MAX:
                self._spent = self._spent or "its processes end before they are called"
            self._fork_ahead()
            self._end_if_of_no_use()
        self._settle()

    def _finish_ended(self, child):
        """What a child wrote before it ended counts; when its result is not among it, there is none."""
        call = child.call
        if child.ended is None or call is None:
            return
        while not child.paused and child.call is call and self._read_child(child):
            pass
        if child.paused and call.stopping:
            self._close(child)  # nobody waits for the rest, and credit for it may never come
            child.paused = False
        if not child.paused and child.call is call and call.final is None:
            self._answer(call, failure(call, "Exited", f"the process {ending(child.ended[0])}", child.ended))

    def _zygote_gone(self, why):
        self._spent = self._spent or "the zygote ended"
        if not self._loaded:
            error = {"type": "Exited", "message": f"the import {why}", "traceback": ""}
            self._zygote_loaded(hearth_json.dumps({"ok": False, "error": error}), False)
        self._end_if_of_no_use()
        self._settle()

    def _end_if_of_no_use(self):
        """Between calls nobody could be told that there will be no other: the link's end tells it."""
        if self._spent and self._loaded and self._call is None and self._settling is None and self._link.idle:
            self._lost(self._spent)


def _may_send(call, kind, number, size):
    if call is None or number != call.number or call.final is not None or kind not in _FROM_CHILD:
        return False
    if kind in _BULK:
        return size <= frames.DATA_BYTES_MAX
    return size <= frames.PAYLOAD_BYTES_MAX and not (kind == frames.EMIT and call.emits >= EMITS_MAX)


def _write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]
