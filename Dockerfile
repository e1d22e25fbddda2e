# The server in a container, on the CPU or on NVIDIA GPUs alike (torch's wheel brings CUDA):
#
#   docker build --tag esp-medsam .
#   docker run --rm -p 8000:8000 esp-medsam                                    the sample data
#   docker run --rm -p 8000:8000 -v "$PWD/studies:/studies" esp-medsam         your images
#   docker run --rm -p 8000:8000 --gpus all esp-medsam --models ct_liver       options of `serve`
#   docker run --rm -p 8000:8000 --entrypoint monailabel esp-medsam start_server \
#       --app apps/esp_medsam --studies /studies --conf models ct_liver         MONAI Label's own
#
# /studies also receives the labels: it must be writable for user 1000 (or add --user "$(id -u)").
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    GIT_PYTHON_REFRESH=quiet \
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
# Editable, because the app folder is loaded from beside the package.
# Any user may run it: home, the app folder (models, logs) and the studies are writable for all.
RUN pip install --no-build-isolation --no-deps --editable . \
    && useradd --uid 1000 --create-home medsam \
    && esp-medsam sample-data --output /tmp/samples \
    && mv /tmp/samples/studies /studies && rm -rf /tmp/samples \
    && chown -R medsam:medsam /studies apps /home/medsam \
    && chmod -R a+rwX /studies apps /home/medsam

ENV HOME=/home/medsam
USER medsam
VOLUME /studies
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/info/', timeout=8)"]

ENTRYPOINT ["esp-medsam", "serve", "--host", "0.0.0.0", "--studies", "/studies"]
CMD []
