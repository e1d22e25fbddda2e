# The server in a container, on the CPU or on NVIDIA GPUs alike (torch's wheel brings CUDA):
#
#   docker build --tag esp-medsam .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v esp-medsam:/data esp-medsam
#   docker run ... --gpus all esp-medsam --models ct_liver                     options of `serve`
#   docker run ... -v "$PWD/images:/data/studies" esp-medsam                   your images
#   docker compose up                                                          with a PACS
#
# All that it writes lies in /data, which user 1000 has to be able to write (or add --user).
# docs/deployment.md tells the rest.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/esp-medsam

# The large and rarely changing part first. sam2 imports torch while it is built: see requirements.txt
COPY requirements.txt ./
RUN pip install --constraint requirements.txt setuptools torch \
    && SAM2_BUILD_CUDA=0 pip install --no-build-isolation --requirement requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY esp_medsam_app ./esp_medsam_app
COPY apps ./apps
# Editable, because the app folder lies beside the package. The code stays root's: the server cannot
# alter it.
RUN pip install --no-build-isolation --no-deps --editable . \
    && python -m compileall -q esp_medsam_app apps \
    && useradd --uid 1000 --home-dir /data/cache medsam \
    && install --directory --owner medsam --group medsam /data

# from here on nothing but /data is written
ENV PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data/cache
USER 1000
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=8)"]

ENTRYPOINT ["esp-medsam", "serve", "--host", "0.0.0.0", "--data", "/data"]
CMD []
