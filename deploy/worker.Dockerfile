# The worker: conductor and engine. With the default index this brings torch's CUDA build; pass TORCH_INDEX for another one.
FROM python:3.13-slim AS build
ARG TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY worker worker
COPY migrations migrations
RUN python -m venv /opt/expunge && \
    if [ -n "$TORCH_INDEX" ]; then \
        /opt/expunge/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0; fi && \
    /opt/expunge/bin/pip install --no-cache-dir -c constraints.txt '.[service,s3,otel,worker]'

FROM python:3.13-slim
RUN useradd --system --create-home --uid 10001 expunge && \
    install -d -o expunge -g expunge /data /keks /signer
COPY --from=build /opt/expunge /opt/expunge
ENV PATH=/opt/expunge/bin:$PATH PYTHONUNBUFFERED=1
USER expunge
# Exec form: SIGTERM reaches the worker itself, which drains.
CMD ["expunge", "worker"]
