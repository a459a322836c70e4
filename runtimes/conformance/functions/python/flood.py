import os


def handle(event, context):
    left = event
    while left:
        left -= os.write(1, b"x" * min(left, 60_000))
    return "done"
