# docker build -f docker/cpu.Dockerfile -t reslab .
# docker run --rm -v "$PWD/multirun:/reslab/multirun" reslab residual=hyperconn
# PIP_ARGS: pip's option for the index of PyTorch's CPU wheels (pytorch.org/get-started), which are much smaller.
FROM python:3.11-slim
ARG PIP_ARGS=""

# The C++ kernels are compiled at their first use; git states the commit in result.json.
RUN apt-get update && apt-get install -y --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /reslab
COPY pyproject.toml setup.py constraints.txt README.md ./
COPY src/__init__.py src/__init__.py
RUN pip install --no-cache-dir $PIP_ARGS -c constraints.txt '.[app]'
COPY . .
ENTRYPOINT ["python", "run.py"]
