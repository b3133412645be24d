# The service alone: runtime dependencies with every extra as uv.lock says, our modules, the shipped settings. Build: docker compose build

FROM python:3.13-slim AS dependencies
WORKDIR /app
ENV UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir uv==0.13.9
COPY pyproject.toml uv.lock ./
# The second stage has this image's Python at the same path, so the environment can move there whole.
RUN uv sync --locked --no-default-groups --all-extras

FROM python:3.13-slim
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# /app/data holds the SQLite file. A named volume takes its owner from here.
RUN useradd --system --no-create-home --uid 10001 router && install --directory --owner=router /app/data
COPY --from=dependencies /app/.venv .venv
COPY pyproject.toml config.yaml router.py serve.py db.py cache.py nomyo ./
COPY core/ core/
COPY stores/ stores/
COPY cluster/ cluster/
COPY commands/ commands/
COPY api/ api/
COPY requests/ requests/
COPY backends/ backends/
COPY page/ page/
USER router
VOLUME /app/data
EXPOSE 12434
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:12434/health', timeout=2)"]
CMD ["python", "serve.py", "--host", "0.0.0.0", "--port", "12434"]
