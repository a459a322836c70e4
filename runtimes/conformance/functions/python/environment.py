import os


def handle(event, context):
    return os.environ["GREETING"]
