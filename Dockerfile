# dfx with the plugins of the paper and of the tests: docker build --tag dfx .
#   docker run --rm --volume "$PWD:/audio" --workdir /audio dfx dfx-render mastering mix.wav master.wav
# With CUDA: docker build --build-arg WHEELS=https://pypi.org/simple --tag dfx .
FROM python:3.11-slim-bookworm

# pedalboard links against libatomic, which slim images lack.
RUN apt-get update && apt-get install --yes --no-install-recommends \
        calf-plugins lsp-plugins-lv2 liblilv-0-0 zam-plugins invada-studio-plugins-lv2 \
        libatomic1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /dfx
# Only what the package is built from: other changes do not install torch again.
COPY pyproject.toml README.md LICENSE ./
COPY dfx dfx
COPY data/models data/models
# A wheel for CPUs, 2.11.0+cpu, is preferred to 2.11.0 of PyPI, which brings CUDA.
ARG WHEELS=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --extra-index-url "$WHEELS" .

# Configs, shipped pairs and sweeps, for training.
COPY train.py evaluate.py ./
COPY configs configs
COPY data data
