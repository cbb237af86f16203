# What a change is checked with. `make check` takes less than a minute; see CONTRIBUTING.md.
.PHONY: help check lint types fast test slow gpu timings pages

PYTHON ?= python
FAST = tests/unit/test_structure.py tests/unit/test_pages.py tests/unit/test_project_files.py \
       tests/unit/ground tests/unit/record \
       tests/unit/asking/test_prompts.py tests/unit/diffusion/test_schedule.py

help:        ## what there is to make
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

check: lint types fast  ## ruff, mypy, the rules of the house and fast tests: under a minute

lint:        ## ruff: rules and format
	ruff check .
	ruff format --check .

types:       ## mypy
	$(PYTHON) -m mypy

fast:        ## the fast tests
	$(PYTHON) -m pytest -q $(FAST)

test:        ## the default tests
	$(PYTHON) -m pytest

slow:        ## the tests that take minutes each
	$(PYTHON) -m pytest -m slow

gpu:         ## the tests that need a CUDA device
	$(PYTHON) -m pytest -n 0 -m gpu

timings:     ## measure what does not need other machines, on idle cores: comparing, DPO, DDPO beside TRL, two processes
	$(PYTHON) tests/timings/compare_many.py
	$(PYTHON) tests/timings/dpo_step.py 32 8
	$(PYTHON) tests/timings/ddpo_epoch.py
	$(PYTHON) tests/timings/two_processes.py

pages:       ## write the tables of the pages anew, from the result files
	$(PYTHON) tests/support/pages.py
