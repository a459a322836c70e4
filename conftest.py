"""For every test of the workspace: a real broker where it is asked for (`broker`, `bus`, `own_broker`)."""

pytest_plugins = ["hearth_kit.pytest_plugin"]
