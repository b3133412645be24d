"""A process of a service, for its tests: `python -m tests.cluster.member FOLDER`, or with the URL of a Valkey. Runs
each line of its input, code as JSON, and prints what it gives. It leaves when its input ends."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from cluster.protocol import Cluster
from cluster.workers import Workers
from tests.cluster.evaluation import evaluate


def made(where: str) -> Cluster:
    if "://" not in where:
        return Workers(Path(where))
    from tests.cluster.services import replica

    return replica(where)


async def main() -> None:
    cluster = made(sys.argv[1])
    await cluster.open()
    names: dict[str, Any] = {"cluster": cluster}
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"result": None}), flush=True)
    while line := await reader.readline():
        try:
            answer = {"result": await evaluate(json.loads(line), names)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
    await cluster.close()


asyncio.run(main())
