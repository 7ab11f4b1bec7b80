"""The pair as a service: texts in by HTTP, texts out, with who wrote each token."""

from bild.errors import require

require("serve", "fastapi", "prometheus_client", "uvicorn")
