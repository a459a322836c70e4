"""For every test of the workspace: a real broker where it is asked for (`broker`, `bus`, `own_broker`); and every container
that any test makes is compared with the hardened profile."""

pytest_plugins = ["hearth_kit.pytest_plugin", "hearth_executor.containers.pytest_plugin"]
