# SPDX-License-Identifier: Apache-2.0
# `make help` lists what a person calls.
PYTHON ?= python3
VENV ?= .venv
PREFIX ?= /opt/nvidiad
DESTDIR ?=
SYSCONFDIR ?= /etc
# Two at a time: a test of a bed waits for most of its time. Files stay together, as their beds do.
# In the order of tests/conftest.py, not in xdist's own.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin

.PHONY: help demo test test-images lint fuzz bench soak lock audit sbom man completions site bundle deb provision \
  image install clean

help:
	@echo 'make demo     show the main job in a virtual machine (needs root on Debian 12 or 13);'
	@echo '              DRIVER=real takes NVIDIA'"'"'s open modules and tools instead of stand-ins'
	@echo 'make test     set everything up and run every test'
	@echo 'make test-images  only those of nvidiad-image: real builds, proofs, publishing'
	@echo 'make lint     ruff and mypy'
	@echo 'make fuzz     attack every parser for a while (SECONDS=$(SECONDS) each)'
	@echo 'make bench    measure what docs/performance.md claims'
	@echo 'make soak     let one daemon look 5000 times, with faults, and see what it holds then'
	@echo 'make lock     take newer versions of what is shipped into requirements/'
	@echo 'make audit    ask for known vulnerabilities of what is shipped'
	@echo 'make sbom     the bill of materials of what is shipped (CycloneDX)'
	@echo 'make man      write the pages made of nvidiad/codes.toml: nvidiad-codes(7), docs/status.md'
	@echo 'make completions  write what the shells complete, from the parsers'
	@echo 'make site     build the documentation as a site, in build/site/html'
	@echo 'make bundle   nvidiad with its own Python, for hosts without one: dist/*.tar.zst, *.tar.gz, *.raw'
	@echo 'make deb      the Debian package of what make bundle has made: dist/*.deb'
	@echo 'make provision  contrib/provision filled in for dist/ (URL=, where these files will be)'
	@echo 'make image    a container image of what make bundle has made (IMAGE=, BASE=)'
	@echo 'make install  install on this host (DESTDIR=, PREFIX=$(PREFIX), SYSCONFDIR=$(SYSCONFDIR))'

# pystemd has no wheels: it is compiled against libsystemd. Debian's own Python is enough for everything.
$(VENV)/.ready: setup.cfg
	tools/prepare.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

# An environment of its own: some of it would change what nvidiad's own libraries import.
TOOLS := $(VENV)/tools
$(TOOLS)/.ready: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --require-hashes --no-deps --requirement requirements/tools.txt
	touch $@

SITE := $(VENV)/site
$(SITE)/.ready: requirements/site.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install --quiet --require-hashes --no-deps --requirement requirements/site.txt
	touch $@

# DRIVER=real shows it with NVIDIA's own modules, built here.
DRIVER ?= stand-in
demo: $(VENV)/.ready
	$(BIN)/python -m tests.vm.demo --driver $(DRIVER)

# Tools that single tests skip without.
test: $(VENV)/.ready $(TOOLS)/.ready $(SITE)/.ready
	[ "$$(id -u)" != 0 ] || tools/prepare.sh kmod lintian scdoc shellcheck fish zsh
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-images: $(VENV)/.ready
	[ "$$(id -u)" != 0 ] || tools/prepare.sh kmod scdoc shellcheck fish zsh
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit/image tests/images tests/vm/test_real_driver.py \
	  tests/host/test_compatibility.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

# What is found is kept in tests/fuzz/corpus; SECONDS for each target.
SECONDS ?= 60
fuzz: $(VENV)/.ready
	$(BIN)/python -m tests.fuzz.long $(SECONDS)

bench: $(VENV)/.ready
	$(BIN)/python -m bench

soak: $(VENV)/.ready
	$(BIN)/python -m tests.soak

lock: $(VENV)/.ready $(TOOLS)/.ready
	tools/lock.sh $(TOOLS)/bin/uv

audit: $(VENV)/.ready $(TOOLS)/.ready
	$(BIN)/python -m tools.audit $(TOOLS)/bin/pip-audit

sbom: $(VENV)/.ready
	$(BIN)/python -m tools.sbom >nvidiad.cdx.json

# Of the standard library only, so that any Python does.
man:
	$(PYTHON) -m tools.codes

# Of the parsers, so it needs what nvidiad-image imports.
completions: $(VENV)/.ready
	$(BIN)/python -m tools.completions

# SITE_URL=https://... where it will be.
site: $(SITE)/.ready
	$(PYTHON) -m tools.site $(abspath $(SITE))/bin/zensical

# Built from nothing each time, as root on Debian 12 or 13. The tree is kept in build/bundle/tree.
bundle:
	tools/prepare.sh mmdebstrap debian-archive-keyring squashfs-tools zstd scdoc
	$(PYTHON) -m tools.bundle

# TREE is what `make bundle` leaves.
TREE ?= build/bundle/tree
deb:
	tools/prepare.sh dpkg-dev scdoc
	tools/deb.sh $(TREE) dist
	cd dist && sha256sum nvidiad* >SHA256SUMS

# URL is where the files in dist/ will be.
provision:
	$(PYTHON) -m tools.provision dist dist/provision --url=$(URL)

IMAGE ?= nvidiad:$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' nvidiad/__init__.py)
BASE ?= debian:13-slim
image:
	rm -rf build/image
	cp -R $(TREE) build/image
	cp docker/daemon/entry build/image/
	docker build --build-arg BASE=$(BASE) --file docker/daemon/Dockerfile --tag $(IMAGE) build/image

# Nothing but what the locks name, and compiled with nothing else; the host gets wheels only.
BUILD ?= build/install
install:
	rm -rf build/lib $(BUILD)
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/pip install --quiet --require-hashes --no-deps --requirement requirements/build.txt
	$(BUILD)/bin/pip wheel --quiet --require-hashes --no-deps --no-build-isolation --no-cache-dir \
	  --requirement requirements/runtime.txt --wheel-dir $(BUILD)/wheels
	$(BUILD)/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(BUILD)/wheels .
	$(PYTHON) -m venv $(DESTDIR)$(PREFIX)
	$(DESTDIR)$(PREFIX)/bin/pip install --quiet --no-index --no-deps $(BUILD)/wheels/*.whl
	sed -i '1s,^#!$(DESTDIR),#!,' $(DESTDIR)$(PREFIX)/bin/nvidiad $(DESTDIR)$(PREFIX)/bin/nvidiad-image \
	  $(DESTDIR)$(PREFIX)/bin/nvidiad-kubernetes
	tools/install-units.sh "$(DESTDIR)" "$(SYSCONFDIR)" "$(PREFIX)"
	tools/install-man.sh "$(DESTDIR)$(PREFIX)/share/man"
	tools/install-completions.sh "$(DESTDIR)$(PREFIX)/share"

clean:
	rm -rf $(VENV) build dist *.egg-info
