# docker build -t mini-llm . && docker run -p 127.0.0.1:8000:8000 -e MINI_LLM_API_KEY=... -v "$PWD/runs/demo:/model:ro" mini-llm
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY configs configs
COPY mini_llm mini_llm
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt '.[serve,structured]'
RUN useradd --create-home user
USER user
EXPOSE 8000
ENTRYPOINT ["mini-llm", "serve", "/model", "--host", "0.0.0.0"]
