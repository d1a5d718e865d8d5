# The two commands: `make demo` and `make test`. Both install what they need into .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CHECK_STAMP := .venv/.installed-check

.PHONY: setup demo test test-all chaos bench gpu-check check audit clean
setup: $(STAMP)

# pip installs exactly what constraints.txt pins; a second call finds the stamp newer than both files and does nothing.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Maskfleet needs Python 3.11 or later: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

$(CHECK_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev,test]'
	touch $(CHECK_STAMP)

demo: $(STAMP)
	$(BIN)/maskfleet demo

# One thread a process, and threads that wait sleep: the tests run many processes, and OpenMP threads that wait for one
# another waste the cores (two trainings at once on two cores: 1 image/s each, 7 with this). Two files at a time, as most
# tests of whole runs wait for something to start.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
test: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile

# All that takes longer or needs more: whole commands, Ray clusters of several nodes and hosts, a real S3 server (Ceph's
# RADOS Gateway) and Chromium, both fetched once from Debian's packages, tutorial and README typed as they stand. `make
# test-all ONLY=s3` runs those of one marker (long, browser, s3, cluster, docs). What cannot run skips with its reason.
# Two files at a time; what uses several nodes, or the Ray that all tests of a process share, runs by itself, always in the
# same order, as it wants both cores.
MORE := long or browser or s3 or docs
test-all: $(STAMP)
ifdef ONLY
	$(ONE_THREAD) $(BIN)/python -m pytest -m '($(ONLY)) and not slow'
else
	@status=0; export $(ONE_THREAD); set -x; \
	$(BIN)/python -m pytest -n 2 --dist loadfile -m '($(MORE)) and not (cluster or shared_ray or slow)' || status=1; \
	$(BIN)/python -m pytest -m '(cluster or ($(MORE)) and shared_ray) and not slow' || status=1; \
	exit $$status
endif

# The fault suite in its long form: hours of kills, lost nodes, failing stores and broken files.
chaos: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -m '' -rA --durations=0 tests/chaos

# Every figure of benchmarks/README.md anew, against its peer in the same run: hours, on a machine that does nothing else.
# `make bench ONLY=rle` runs one, `make bench IMAGES=photos` takes your photos where a benchmark draws some.
bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ONLY) $(if $(IMAGES),--images '$(IMAGES)')

# The network on one GPU, in minutes: whether it gives what it must, how often the host waits for it, how fast it is. Without
# a GPU small tensors on the CPU, which show that every part runs. `make gpu-check ONLY='predictor waits'` runs some parts;
# a machine that has torch and torchvision alone runs `python -m benchmarks.gpu_check`.
gpu-check: $(STAMP)
	$(BIN)/python -m benchmarks.gpu_check $(ONLY) --out gpu_check.json

# Style and types of everything, tests included; `ruff check --fix` and `ruff format` mend what can be mended.
check: $(CHECK_STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Known weaknesses of the pinned packages; asks the public advisories, so it needs the network.
audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit
	.venv/audit/bin/pip-audit --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf .venv demo out
