# What a change is checked with. `make check` takes less than a minute; see CONTRIBUTING.md.
.PHONY: help check lint types fast test slow gpu timings gpu-timings gpu-wheels pages

PYTHON ?= python
FAST = tests/unit/test_structure.py tests/unit/test_pages.py tests/unit/test_project_files.py \
       tests/unit/ground tests/unit/record \
       tests/unit/asking/test_prompts.py tests/unit/diffusion/test_schedule.py

help:        ## what there is to make
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

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

timings:     ## measure what does not need other machines, on idle cores: comparing, DPO, DDPO and scorers beside peers, growth
	$(PYTHON) tests/timings/compare_many.py
	$(PYTHON) tests/timings/dpo_step.py
	$(PYTHON) tests/timings/dpo_step.py --large
	$(PYTHON) tests/timings/ddpo_epoch.py
	$(PYTHON) tests/timings/scorers.py
	$(PYTHON) tests/timings/two_processes.py
	$(PYTHON) tests/timings/growth.py --prompts 200 2000 --rows 2000 --pairs 100000
	$(PYTHON) tests/timings/options.py
	$(PYTHON) tests/timings/generation.py
	$(PYTHON) tests/timings/start_up.py

gpu-timings: ## measure on a GPU, in at most eight minutes; typed again it goes on where it was
	$(PYTHON) tests/timings/gpu.py --output results/timings/gpu.json

# What this needs that a machine with PyTorch, transformers and peft may lack, for Python 3.12.
WHEELS = diffusers open_clip_torch ftfy wcwidth

gpu-wheels:  ## packages for a GPU machine without a network, into .wheels; see tests/timings/gpu.py
	$(PYTHON) -m pip download --no-deps --only-binary=:all: --python-version 3.12 --dest .wheels $(WHEELS)

pages:       ## write the tables of the pages anew, from the result files
	$(PYTHON) tests/support/pages.py
