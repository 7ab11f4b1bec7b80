# The pair as a service, on CPUs:
#   docker build --tag bild .
#   docker run --publish 127.0.0.1:8000:8000 bild
# For PyTorch's CPU build, some GB smaller, add
#   --build-arg PIP_EXTRA_INDEX_URL=... (the CPU index that PyTorch's installation page names)
FROM python:3.12-slim-bookworm

# The fast engine is compiled where it runs, for the processor that it finds there.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home bild
WORKDIR /bild
COPY . .
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir --requirement requirements-serve.txt \
    && mkdir out && chown bild out

USER bild
ENV OMP_NUM_THREADS=1
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"]
# Within the container it listens to all; who may reach it is what --publish says.
CMD ["bild", "serve", "--host", "0.0.0.0", "--allow-host", "localhost"]
