print("loading")
calls = 0


def handle(event, context):
    global calls
    calls += 1
    return str(calls)
