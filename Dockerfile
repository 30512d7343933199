# Qohort with everything that requirements.lock pins, for `make train` and `make test`.
#
#   docker build -t qohort .                                                   # CPU
#   docker build -t qohort --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .   # CUDA
#   docker run --rm -v "$PWD/outputs:/qohort/outputs" qohort make train
#   docker run --rm --gpus all -v "$PWD/outputs:/qohort/outputs" qohort make train ARGS="trainer=gpu"
#   docker run --rm qohort make test
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# A compiler for compile=inductor, git for the commit in manifest.json, and what the tests of OpenCV and of pygame load.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git libgl1 libglib2.0-0 make \
    && rm -rf /var/lib/apt/lists/*

# Everything is written by a user without rights, as clusters do it.
RUN useradd --create-home --uid 1000 qohort && mkdir /qohort && chown qohort /qohort
USER 1000
WORKDIR /qohort

# Torch comes from the index of its kind: cpu, or that of a version of CUDA. The other packages come from PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=${TORCH_INDEX} PIP_NO_CACHE_DIR=1

# The packages are a layer of their own, which stays when only the code has changed. `make setup` finds them installed.
COPY --chown=1000 requirements.lock ./
RUN python -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock

COPY --chown=1000 . .
RUN make setup
ENV PATH=/qohort/.venv/bin:${PATH}
CMD ["make", "help"]
