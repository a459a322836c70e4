"""What a function's processes may write to and reach, held by the kernel where it can (Landlock, kernel 5.19 and later).

All processes of a sandbox share one uid: by modes alone a function could give itself back the right to write to its
code, so that one call could change what the next one runs, and could send signals to the supervisor.
"""

import ctypes
import os
import struct

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

#: The first version under which files can still be moved between two folders.
VERSION_MIN = 2
#: The first version that keeps signals and abstract sockets within.
VERSION_SCOPES = 6

#: write, remove folders and files, make anything, move to another folder
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 14))
_TRUNCATE = 1 << 14
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2

_RULESET = struct.Struct("=QQQ")
_BENEATH = struct.Struct("=Qi")


def version(libc):
    """Which version the kernel has; 0 when it has none, or it is switched off."""
    return max(0, libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION))


def confine(libc, writable):
    """From now on this process and all below it write in these folders alone, and signal nobody outside of themselves.
    False where the kernel cannot hold them to it: modes are all there is then."""
    has = version(libc)
    if has < VERSION_MIN:
        return False
    rights = _WRITES | (_TRUNCATE if has >= 3 else 0)
    scopes = _ABSTRACT_SOCKETS | _SIGNALS if has >= VERSION_SCOPES else 0
    asked = _RULESET.pack(rights, 0, scopes)[: 24 if scopes else 8]
    ruleset = libc.syscall(_CREATE_RULESET, asked, ctypes.c_size_t(len(asked)), 0)
    if ruleset < 0:
        return False
    try:
        for folder in writable:
            if not _allow(libc, ruleset, rights, folder):
                return False
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(libc, ruleset, rights, folder):
    try:
        at = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, _BENEATH.pack(rights, at), 0) == 0
    finally:
        os.close(at)
