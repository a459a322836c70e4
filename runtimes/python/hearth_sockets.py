"""Sockets that carry descriptors, without the `socket` module and what it loads."""

import struct
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET, socket, socketpair

__all__ = ["AF_UNIX", "SOCK_SEQPACKET", "SOCK_STREAM", "receive_fds", "send_fds", "socket", "socketpair"]

_ROOM = CMSG_SPACE(3 * 4)
_FDS = (struct.Struct(""), struct.Struct("i"), struct.Struct("2i"), struct.Struct("3i"))


def send_fds(sock, data, *fds):
    sock.sendmsg((data,), ((SOL_SOCKET, SCM_RIGHTS, _FDS[len(fds)].pack(*fds)),))


def receive_fds(sock, size):
    """(data, descriptors), the descriptors closed on exec; at most three."""
    data, ancillary, _, _ = sock.recvmsg(size, _ROOM, MSG_CMSG_CLOEXEC)
    if not ancillary:
        return data, ()
    return data, _FDS[len(ancillary[0][2]) // 4].unpack(ancillary[0][2])
