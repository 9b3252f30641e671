# SPDX-License-Identifier: Apache-2.0
# `make help` lists what a person calls.
PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /opt/nvidiad
DESTDIR ?=
SYSCONFDIR ?= /etc
# Two at a time: a test of a bed waits for most of its time. Files stay together, as their beds do.
PYTEST_ARGS ?= -n 2 --dist loadfile
BIN := $(VENV)/bin

.PHONY: help demo test lint bench install clean

help:
	@echo 'make demo     show the main job in a virtual machine (needs root on Debian 12 or 13)'
	@echo 'make test     set everything up and run every test'
	@echo 'make lint     ruff and mypy'
	@echo 'make bench    measure what docs/performance.md claims'
	@echo 'make install  install on this host (DESTDIR=, PREFIX=$(PREFIX), SYSCONFDIR=$(SYSCONFDIR))'

# pystemd has no wheels: it is compiled against libsystemd. Debian's own Python is enough for everything.
$(VENV)/.ready: setup.cfg
	tools/prepare.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m tests.vm.demo

# Tools that single tests skip without.
test: $(VENV)/.ready
	[ "$$(id -u)" != 0 ] || tools/prepare.sh kmod scdoc shellcheck
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python -m bench

install:
	$(PYTHON) -m venv $(DESTDIR)$(PREFIX)
	$(DESTDIR)$(PREFIX)/bin/pip install --quiet .
	sed -i '1s,^#!$(DESTDIR),#!,' $(DESTDIR)$(PREFIX)/bin/nvidiad
	tools/install-units.sh "$(DESTDIR)" "$(SYSCONFDIR)" "$(PREFIX)"
	tools/install-man.sh "$(DESTDIR)$(PREFIX)/share/man"

clean:
	rm -rf $(VENV) build dist *.egg-info
