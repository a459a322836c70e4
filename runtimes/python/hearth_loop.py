"""One thread's epoll with timers: the few lines of an event loop that a supervisor needs, and no more to load."""

import heapq
import select
import time


class Loop:
    def __init__(self):
        self._poll = select.epoll()
        self._readers = {}
        self.writers = {}
        self._masks = {}
        self._timers = []
        self._numbers = 0

    def reading(self, fd, handler):
        """Call `handler` whenever `fd` can be read; None stops that."""
        self._set(self._readers, fd, handler)

    def writing(self, fd, handler):
        self._set(self.writers, fd, handler)

    def forget(self, fd):
        """To be called right before the last descriptor of what `fd` stands for is closed: the kernel then forgets it, too."""
        self._readers.pop(fd, None)
        self.writers.pop(fd, None)
        self._masks.pop(fd, None)

    def later(self, delay_s, action):
        self._numbers += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._numbers, action))

    def run(self):
        poll, readers, writers, timers = self._poll.poll, self._readers, self.writers, self._timers
        writable = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
        while True:
            timeout = max(0.0, timers[0][0] - time.monotonic()) if timers else -1
            for fd, mask in poll(timeout):
                if mask & writable and fd in writers:
                    writers[fd]()
                if mask != select.EPOLLOUT and fd in readers:
                    readers[fd]()
            while timers and timers[0][0] <= time.monotonic():
                heapq.heappop(timers)[2]()

    def _set(self, table, fd, handler):
        if handler is None:
            table.pop(fd, None)
        else:
            table[fd] = handler
        mask = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self.writers else 0)
        before = self._masks.get(fd, 0)
        if mask == before:
            return
        if not mask:
            del self._masks[fd]
            self._poll.unregister(fd)
            return
        self._masks[fd] = mask
        if before:
            self._poll.modify(fd, mask)
        else:
            self._poll.register(fd, mask)
