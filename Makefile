# The project's commands. All is installed into .venv; nothing outside it is changed.

# First of the Pythons that is 3.11.
IS_3_11 := import sys; sys.exit(sys.version_info[:2] != (3, 11))
PYTHON = $(shell for python in python3.11 python3; do \
	$$python -c '$(IS_3_11)' 2>/dev/null && echo $$python && break; done)
HEADERS = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')
COMPILER = $(shell command -v "$${CXX:-c++}")
INSTALLER = $(shell command -v uv || $(PYTHON) -c 'import ensurepip; print("pip")' 2>/dev/null)
LIBNUMA = $(shell $(PYTHON) -c 'import ctypes; print(ctypes.CDLL("libnuma.so.1"))' 2>/dev/null)

# PyPI does not have the CPU build of torch: it comes from the folders of PIP_FIND_LINKS where that
# is set (pip reads it, uv does not), else from PyTorch's own index.
TORCH_SOURCE := $(if $(PIP_FIND_LINKS),$(PIP_FIND_LINKS:%=--find-links %),--torch-backend cpu)
# The pinned sets are complete: nothing is left to resolve. Compiled here once: where Python may not
# write byte code, each of a run's processes would compile torch and the others anew.
INSTALL := uv pip install --quiet --python .venv --no-deps --compile-bytecode $(TORCH_SOURCE)
LOCK_ANY := uv pip compile --quiet --python-version 3.11 --no-annotate \
	--custom-compile-command 'make lock' $(UPGRADE)
LOCK := $(LOCK_ANY) $(TORCH_SOURCE)

# For uv, where it had to be installed, and for ninja, which DeepSpeed calls by its name.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Each process of a run would compile Gavel anew, and the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE
# .venv holds the CPU stack, which cannot use the GPUs that Ray would find.
export CUDA_VISIBLE_DEVICES :=

.PHONY: demo test test-pure lint setup lock clean

demo: .venv/.cpu  # trains and evaluates a small judge
	@gavel run configs/quickstart.yaml

# A start waits for one process after another, so that two tests side by side use the cores better.
test: test-pure  # all tests; those that start engines, learners or a cluster come last
	@failed=0; \
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m "integration and not alone" || failed=1; \
	pytest -m "integration and alone" || failed=1; \
	exit $$failed

test-pure: .venv/.dev  # each process with one thread: there are as many as cores
	@OMP_NUM_THREADS=1 pytest -n 2 -m "not integration"

lint: .venv/.dev  # style, types, and what a package may import
	@ruff check
	@ruff format --check
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright
	@lint-imports

setup: .venv/.dev

lock:  # pins what pyproject.toml asks for; UPGRADE=--upgrade takes newer releases
	@$(LOCK) --override requirements/cpu-overrides.txt -o requirements/cpu.txt --extra cpu pyproject.toml
	@$(LOCK_ANY) --python-platform x86_64-manylinux_2_28 \
		--override requirements/gpu-overrides.txt -o requirements/gpu.txt --extra gpu pyproject.toml
	@$(LOCK) --constraint requirements/cpu.txt -o requirements/dev.txt --group dev

clean:  # all that was made here, but not the runs
	@rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# make expands a whole recipe before it runs the first line, so the checks come before any download.
.venv/.cpu: pyproject.toml requirements/cpu.txt
	$(if $(filter Linux,$(shell uname -s)),,$(error Gavel runs on Linux only))
	$(if $(PYTHON),,$(error Python 3.11 is not on the PATH: install it (apt install python3.11-dev python3.11-venv)))
	$(if $(COMPILER),,$(error no C++ compiler is on the PATH, and DeepSpeed needs one: install it (apt install g++)))
	$(if $(wildcard $(HEADERS)/Python.h),,$(error $(PYTHON) has no headers to compile with: install them (apt install python3.11-dev)))
	$(if $(LIBNUMA),,$(error libnuma, which vLLM needs on a CPU, is not installed: install it (apt install libnuma1)))
	$(if $(INSTALLER),,$(error neither uv nor the venv module of $(PYTHON) is installed: install one of them (apt install python3.11-venv)))
	@echo "set-up 1/3: .venv with $$($(PYTHON) --version)"
	@test -x .venv/bin/python || if command -v uv >/dev/null; then \
		uv venv --quiet --python $(PYTHON); \
	else \
		$(PYTHON) -m venv .venv && .venv/bin/python -m pip install --quiet uv; \
	fi
	@echo "set-up 2/3: the packages of requirements/cpu.txt (2.7 GB)"
	@$(INSTALL) -r requirements/cpu.txt -e .
	@echo "set-up 3/3: DeepSpeed's communication, compiled for this machine"
	@python -c "$$BUILD_COMMUNICATION" >.venv/build.log 2>&1 || { cat .venv/build.log; exit 1; }
	@touch $@

.venv/.dev: .venv/.cpu requirements/dev.txt
	@echo "set-up: the packages of requirements/dev.txt"
	@$(INSTALL) -r requirements/dev.txt
	@touch $@

# DeepSpeed would do this when the first learner starts, within that learner's deadline.
define BUILD_COMMUNICATION
import os
from actors.environment import extensions_folder
os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions_folder())
from learning.extensions import load_communication
load_communication(extensions_folder())
endef
export BUILD_COMMUNICATION
