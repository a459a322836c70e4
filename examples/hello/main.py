"""The smallest function: greets whoever the event names."""


def handle(event, context):
    name = event.get("name", "world") if isinstance(event, dict) else "world"
    print(f"greeting {name}")
    return {"hello": name, "version": context.version}
