# dfx with the plugins of the paper and of the tests: docker build --tag dfx .
#   docker run --rm --volume "$PWD:/audio" --workdir /audio dfx dfx-render mastering mix.wav master.wav
FROM python:3.11-slim-bookworm

RUN apt-get update && apt-get install --yes --no-install-recommends \
        calf-plugins lsp-plugins-lv2 liblilv-0-0 zam-plugins invada-studio-plugins-lv2 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /dfx
# Only what the package is built from: other changes do not install torch again.
COPY pyproject.toml README.md LICENSE ./
COPY dfx dfx
COPY data/models data/models
RUN pip install --no-cache-dir .

# Configs, shipped pairs and sweeps, for training.
COPY train.py evaluate.py ./
COPY configs configs
COPY data data
