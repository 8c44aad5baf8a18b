# syntax=docker/dockerfile:1.7
# The image of learners with a GPU; CUDA comes with torch, the driver from the host (NVIDIA container toolkit):
#   docker build --file docker/gpu.Dockerfile --tag metta-ray-gpu:0.1.0 .
# What is foreign is one layer that changes with requirements.txt; our own code is another, of a few megabytes.
FROM python:3.11.13-slim-bookworm AS foreign
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/metta-ray
ENV PATH=/opt/metta-ray/bin:$PATH
# With its dependencies: the CUDA libraries, whose versions torch itself pins.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install torch==2.13.0
COPY docker/requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --requirement requirements.txt

FROM foreign AS own
COPY pyproject.toml README.md LICENSE ./
COPY metta_ray ./metta_ray
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11.13-slim-bookworm AS runtime
# wget is what KubeRay's probes use; tini passes signals on and reaps what Ray's workers leave behind.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes tini=0.19.* wget=1.21.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 ray \
    && useradd --uid 1000 --gid 1000 --create-home ray \
    && install --directory --owner=1000 --group=1000 /data /tmp/ray
COPY --from=foreign /opt/metta-ray /opt/metta-ray
# RAY_AUTH_MODE: nothing here starts without a token, unless it is told so in words. In jobs, python is the first in PATH.
ENV PATH=/opt/metta-ray/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    DATA_DIR=/data \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY deploy/runs /opt/metta-ray/runs
RUN --mount=type=bind,from=own,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl && pip check
USER 1000:1000
WORKDIR /home/ray
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["sh", "-c", "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success"]
ENTRYPOINT ["tini", "-g", "--"]
CMD ["metta-ray", "--help"]
