# One image for serve, worker and migrate. The engines are services of their own here (compose.yaml), so their wheels stay out.

FROM python:3.13-slim AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The lock file first: as long as it does not change, its layer is kept. `--constraint` pins, the wheel's own metadata selects.
COPY requirements.lock ./
RUN python -m venv /opt/jishi && /opt/jishi/bin/pip install --quiet hatchling \
 && sed -E '/^ +--hash/d; s/ \\$//' requirements.lock > constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY migrations migrations
COPY docs docs
RUN /opt/jishi/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . \
 && python -m venv --clear /opt/jishi \
 && /opt/jishi/bin/pip install --quiet --constraint constraints.txt /wheels/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin jishi
COPY --from=build /opt/jishi /opt/jishi
ENV PATH=/opt/jishi/bin:$PATH PYTHONUNBUFFERED=1 JISHI_HOST=0.0.0.0 JISHI_PORT=8000 JISHI_LOG_FORMAT=json JISHI_DATA_DIR=/tmp/jishi
USER jishi
EXPOSE 8000
# Alive, not ready: a restart would not bring an engine back. For `worker` and `migrate` compose.yaml turns it off.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/healthz'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["jishi"]
CMD ["serve"]
