import time


def handle(event, context):
    print("begin")
    time.sleep(1.5)
    print("end")
    return "done"
