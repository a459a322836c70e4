def handle(event, context):
    with context.output("report.txt") as file:
        file.write("line 1\n")
        file.write(b"line 2\n")
    try:
        context.output("refused")
    except Exception:
        return "refused"
