def handle(event, context):
    while True:
        yield "x" * 60_000
