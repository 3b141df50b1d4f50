# The API, the migration, the signer and the exporter: no torch in here.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY worker worker
COPY migrations migrations
RUN python -m venv /opt/expunge && \
    /opt/expunge/bin/pip install --no-cache-dir -c constraints.txt '.[service,s3,otel]'

FROM python:3.13-slim
RUN useradd --system --create-home --uid 10001 expunge && \
    install -d -o expunge -g expunge /data /keys /keks /signer
COPY --from=build /opt/expunge /opt/expunge
ENV PATH=/opt/expunge/bin:$PATH PYTHONUNBUFFERED=1
USER expunge
ENTRYPOINT []
CMD ["expunge", "serve"]
