def handle(event, context):
    if event:
        raise ValueError("as it was asked to")
    return "fine"
