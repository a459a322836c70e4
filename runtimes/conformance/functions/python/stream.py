def handle(event, context):
    for n in range(event):
        yield f"piece {n}\n"
