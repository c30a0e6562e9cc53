# The `polaris` command in an image of its own, without root and without a secret.
#
#   docker build --target cpu -t polaris_jax:cpu .
#   docker build --target cuda --build-arg CUDA=13 -t polaris_jax:cuda .     (CUDA=12 by default)
#   docker build --target tpu -t polaris_jax:tpu .
#   docker run --rm -v "$PWD/runs:/work" polaris_jax:cpu prepare --config=tiny_cpu --workdir=demo
#
# Versions are those of constraints.txt. `make docker-steps` runs these steps without Docker.

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in requirements.txt README.md LICENSE ./
COPY configs configs
COPY polaris_jax polaris_jax
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY constraints.txt /wheels/
COPY --from=wheel /wheels /wheels/
RUN python -m pip install -c /wheels/constraints.txt /wheels/*.whl
RUN useradd --create-home --uid 1000 polaris && install -d -o polaris /work

# A compiler, for the kernels that a CPU samples with: several times faster than without.
FROM base AS cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
USER polaris
WORKDIR /work
ENTRYPOINT ["polaris"]
CMD ["--help"]

# The driver comes from the host: docker run --gpus all (NVIDIA's container toolkit).
FROM base AS cuda
ARG CUDA=12
RUN python -m pip install -c /wheels/constraints.txt "$(ls /wheels/*.whl)[cuda$CUDA]"
USER polaris
WORKDIR /work
ENTRYPOINT ["polaris"]
CMD ["--help"]

# On a TPU VM: docker run --privileged --net=host. launch/gke_jobset.yaml runs it on GKE.
FROM base AS tpu
RUN python -m pip install -c /wheels/constraints.txt "$(ls /wheels/*.whl)[tpu,gcs]"
USER polaris
WORKDIR /work
ENTRYPOINT ["polaris"]
CMD ["--help"]
