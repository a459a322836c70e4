"""The first program in a sandbox. It makes itself unreadable before anything else runs, then becomes the supervisor.

python3 -I -S supervisor.py fast:<name>      connects to the abstract unix socket <name>
python3 -I -S supervisor.py stdio            speaks on its stdin and stdout, as pid 1
python3 -I -S supervisor.py fd:<n> <root>    for tests: an open socket, and folders under <root> instead of under /
"""

import ctypes
import sys

PR_SET_DUMPABLE = 4
LIBC = ctypes.CDLL(None, use_errno=True)
# A function's process has the same uid: without this it could open this one's memory and descriptors through /proc.
if LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
    sys.exit("the supervisor could not make itself unreadable")

if __name__ == "__main__":
    sys.path.insert(0, __file__.rpartition("/")[0])
    import hearth_boot

    hearth_boot.main(sys.argv[1:], LIBC)
