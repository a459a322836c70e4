import os
import struct


def handle(event, context):
    payload = struct.pack(">I", 15) + b'{"reason":null}' + b"forged"
    for fd in (1, 2):
        os.write(fd, struct.pack(">IBBHI", len(payload), 7, 0, 0, 1) + payload)
    return "real"
