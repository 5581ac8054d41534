# docker build -f docker/cuda.Dockerfile -t reslab:cuda .
# docker run --rm --gpus all --ipc=host -v "$PWD/multirun:/reslab/multirun" reslab:cuda residual=hyperconn trainer=gpu
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime

# Triton compiles its launcher with gcc; git states the commit in result.json.
RUN apt-get update && apt-get install -y --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /reslab
COPY pyproject.toml setup.py constraints.txt README.md ./
COPY src/__init__.py src/__init__.py
RUN pip install --no-cache-dir -c constraints.txt '.[app]'
COPY . .
ENTRYPOINT ["python", "run.py"]
