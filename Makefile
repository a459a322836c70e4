# The same commands everywhere: ./hearth does the work, this names it. `make` alone lists the targets.
.PHONY: generate help init check format test test-all lock up down images

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

init:  ## make .venv and say what else is missing
	./hearth doctor

check:  ## style, types, imports, dependencies, house rules: no broker, no engine
	./hearth check

format:  ## lay the code out
	.venv/bin/ruff check --fix --select I . && .venv/bin/ruff format .

test:  ## all tests but the long ones
	./hearth test

test-all:  ## all tests, with full counts
	./hearth test --all

lock:  ## make requirements.lock from what the members declare; UPGRADE=1 takes newer versions
	.venv/bin/python tools/lock.py $(if $(UPGRADE),--upgrade)

images:  ## build the images that functions run in
	./hearth images build

up:  ## start a platform here
	./hearth up --detach

down:  ## stop it
	./hearth down

generate:  ## write the schemas, the examples' sums and the reference pages anew
	.venv/bin/python tools/documents.py
