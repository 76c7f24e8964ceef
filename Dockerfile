# plam-eval with vLLM for NVIDIA GPUs. Never built or run on a GPU by us: see docs/install.md.
#   docker build -t plam-eval .
#   docker run --gpus all --ipc=host -v ~/.cache/huggingface:/root/.cache/huggingface plam-eval plam doctor --vllm
# torch and vLLM bring CUDA's libraries as wheels; the compiler is for the kernels that vLLM and triton build on first use.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/plam-eval

# The locked packages first: an image layer that a change of plam-eval itself does not touch.
COPY tools/lock-gpu.txt tools/lock-gpu.txt
RUN pip install -r tools/lock-gpu.txt

COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY plam_eval plam_eval
COPY configs configs
COPY model_wrappers model_wrappers
COPY tasks tasks
RUN pip install --no-deps . && pip check && plam doctor

WORKDIR /work
CMD ["plam", "doctor", "--vllm"]
