def handle(event, context):
    context.emit("camera.motion", {"n": 1})
    try:
        context.emit("refused.one", "no")
    except Exception:
        return "refused"
