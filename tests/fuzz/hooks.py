"""What schemathesis is given: most requests name a model that there is, and no answer may be a fault of the
router's."""

from __future__ import annotations

import random
from typing import Any

import schemathesis

MODELS = ("chat-model", "native-model", "ollama-model")
# A backend's fault; and what of Ollama's API is not to be had here.
HONEST = {502, 503, 504}
NOT_IMPLEMENTED = "/api/"


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Names a model that there is in three of four requests: behind that the rest of them is looked at."""
    if isinstance(body, dict) and random.random() < 0.75:
        body["model"] = random.choice(MODELS)
    return body


@schemathesis.check
def answers_honestly(context: Any, response: Any, case: Any) -> None:
    """Fails for a 5xx that names no fault of a backend."""
    status = response.status_code
    if status >= 500 and status not in HONEST and not (status == 501 and case.path.startswith(NOT_IMPLEMENTED)):
        raise AssertionError(f"{status}: {response.text[:500]}")
