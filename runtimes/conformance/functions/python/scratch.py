import os
import tempfile


def handle(event, context):
    folder = os.environ["TMPDIR"]
    found = os.listdir(folder)
    with open(os.path.join(folder, "marker"), "w") as file:
        file.write("x")
    tempfile.mkdtemp()
    return "full" if found else "empty"
