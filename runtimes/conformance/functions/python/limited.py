def handle(event, context):
    said = []
    with context.output("limited") as file:
        file.write("fits")
        try:
            file.write(b"x" * 200)
        except OSError:
            said.append("too much")
    with context.output("another") as file:
        file.write("fits too")
    return ", ".join(said)
