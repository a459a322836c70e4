import sys


def handle(event, context):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return "done"
