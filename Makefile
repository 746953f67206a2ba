# make demo: install, restore the sample pictures, write one comparison sheet
# make test: install, run all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python test_varsr.py --input testset/sample/LR --output demo/VARPrediction --sheet demo/comparison.png --sheet_pictures 6
	@echo "Look at demo/comparison.png"

test: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .

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
