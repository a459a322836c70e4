import os


def handle(event, context):
    folder = os.path.join(os.path.dirname(os.environ["TMPDIR"]), "output")
    found = os.listdir(folder)
    with open(os.path.join(folder, "left.txt"), "w") as file:
        file.write("left behind")
    os.symlink("left.txt", os.path.join(folder, "link"))
    os.mkfifo(os.path.join(folder, "pipe"))
    os.mkdir(os.path.join(folder, "folder"))
    if event == "fail":
        raise ValueError
    return "full" if found else "empty"
