# `make demo` and `make test` work on a bare machine with Python 3.10 to 3.13: .ci/setup makes .venv
# and installs the pinned packages; later calls reuse it. PYTHON=python3.12 chooses the interpreter.
.DEFAULT_GOAL := help
.PHONY: help demo test slow lint bench bench-check score score-quick figures cards notebooks lessons-fast \
	lessons-check site site-test publish env clean
PY := .venv/bin/python

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

demo:  ## draw figures/demo.png from the checkpoints in data/
	@.ci/setup requirements.txt
	$(PY) -m minidiff demo

test: lint  ## lint, and every test that is not marked slow
	$(PY) -m pytest -q

slow: env  ## the tests marked slow
	$(PY) -m pytest -q -m slow

lint: env  ## what the pre-commit hooks check: ruff, line ends, file sizes
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) .ci/check_files.py

bench: env  ## time minidiff beside diffusers
	$(PY) -m benchmarks.run

bench-check: env  ## time a part of that, against the record
	$(PY) -m benchmarks.run --check

score: env  ## every method on the same seeds against its control: docs/scorecard.md
	$(PY) -m minidiff score -n 96

score-quick: env  ## a few images of each method; fails where one that should hold does not
	$(PY) -m minidiff score --quick

figures: env  ## draw every picture the README and the lessons show
	$(PY) -m minidiff demo
	for script in figures/*.py; do $(PY) "$$script" || exit 1; done

cards: env  ## measure the shipped models and write their cards (needs CIFAR-10, butterflies, emoji)
	for model in shapes emoji cifar10 butterflies; do \
	  $(PY) -m minidiff evaluate $$model --card data/$$model.md || exit 1; done

notebooks: env  ## execute every lesson, write it with its outputs and card, and fill README.md
	$(PY) -m notebooks.build run
	$(PY) -m notebooks.readme

lessons-fast: env  ## execute every cell of every lesson with tiny numbers, writing nothing
	$(PY) -m notebooks.build fast

lessons-check: env  ## the size, pictures and form of every lesson against their limits
	$(PY) -m notebooks.build check

site:  ## the course and the documents as a site that is read offline: build/site/index.html
	@.ci/setup requirements-site.txt
	$(PY) -m sphinx -b html -q -W --keep-going -c docs . build/site

site-test: site  ## open every page of the site in a headless browser
	$(PY) .ci/site_test.py

publish:  ## say where the repository lives: make publish OWNER=name [NAME=minidiff]
	python3 .ci/publish.py $(OWNER) $(NAME)

env:  ## make .venv with what development needs
	@.ci/setup requirements-dev.txt

clean:  ## remove caches and build outputs (.venv and downloads stay)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
