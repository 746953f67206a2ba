# make demo: install, restore the sample pictures, write one comparison sheet
# make test: install, run all tests in two processes
# make gpu: install, test and time everything on this machine's GPU (docs/performance.md)
# make gpu PYTHON=python3: the same with a Python that has all it needs; nothing is installed
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RESULTS ?= benchmarks/results
ifeq ($(origin PYTHON),file)
GPU_PYTHON := $(BIN)/python
GPU_NEEDS := $(VENV)/.installed-dev
else
GPU_PYTHON := $(PYTHON)
GPU_NEEDS :=
endif

.PHONY: demo test lint gpu clean

demo: $(VENV)/.installed
	$(BIN)/python test_varsr.py --input testset/sample/LR --output demo/VARPrediction --sheet demo/comparison.png --sheet_pictures 6
	@echo "Look at demo/comparison.png"

test: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .

gpu: $(GPU_NEEDS)
	$(GPU_PYTHON) -m benchmarks.gpu --results $(RESULTS)

$(VENV)/.installed: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-app.txt requirements-perceptual.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps mmagic==1.2.0  # for the statistics file of NIQE in it alone
	touch $@

clean:
	rm -rf $(VENV) demo
