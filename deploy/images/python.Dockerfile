# The Python runtime where a registry can be reached. `./hearth images build` makes the same from Debian's packages alone.
# Build from the top of the checkout: docker build -f deploy/images/python.Dockerfile -t hearth-runtime-python:dev .
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 media-types tzdata && rm -rf /var/lib/apt/lists/*
COPY deploy/images/prepare.py /tmp/prepare.py
RUN python3 -I -S /tmp/prepare.py base
COPY runtimes/python/ /opt/hearth/
RUN python3 -I -c "import sys; sys.path.insert(0, '/tmp'); import prepare; prepare.compile_below('/opt/hearth')" && rm -rf /tmp/prepare.py /tmp/__pycache__
LABEL hearth.runtime=python
