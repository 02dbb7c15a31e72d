# The image of every target in docs/launch.md.
#   docker build --tag=IMAGE .                        for TPU
#   docker build --tag=IMAGE --build-arg=EXTRA=gpu .  for NVIDIA GPUs
# Launch it by digest (IMAGE@sha256:...): all hosts, and all restarts, then run the same code.
FROM python:3.12-slim-bookworm

ARG EXTRA=tpu
WORKDIR /app
COPY setup.py MANIFEST.in README.md LICENSE ./
# srpo_jax has links to the other three: all have to be there before it is installed.
COPY srpo_jax srpo_jax
COPY configs configs
COPY data_pipelines data_pipelines
COPY launch launch
RUN pip install --no-cache-dir ".[${EXTRA}]"

RUN useradd --create-home srpo
USER srpo
ENV PYTHONUNBUFFERED=1
# No shell in between: SIGTERM reaches the program, which saves and stops.
ENTRYPOINT ["srpo"]
CMD ["--help"]
