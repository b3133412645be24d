"""What the router keeps, where it keeps it, and for how long. Each store has its own tests, in tests/stores/."""

from __future__ import annotations

from pathlib import Path

from db import make_store
from tests.conftest import running_router
from tests.fake_backend import FakeBackend, chat, http_error
from tests.stores.rows import row
from tests.turns import assert_error, create, eventually, stream, turn


class TestThroughTheRouter:
    MARKER = "QuetzalcoatlusNorthropi"

    def bytes_on_disk(self, folder: Path) -> bytes:
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert {"router.db", "router.db-wal", "cache.db"} <= {file.name for file in files}
        return b"".join(file.read_bytes() for file in files)

    async def test_store_false_leaves_nothing_on_disk(self, backend: FakeBackend, tmp_path):
        settings = {
            "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
            "database": {"url": f"sqlite:///{tmp_path}/router.db"},
            "cache": {"backend": "sqlite", "path": f"{tmp_path}/cache.db"},
        }
        secret = {"input": f"I am {self.MARKER}", "instructions": self.MARKER, "nomyo": {"cache": True}}
        backend.default = chat(f"You are {self.MARKER}")
        async with running_router(**settings) as running:
            first = await create(running.http, **secret, store=False)
            streamed = (await stream(running.http, **secret, store=False))[-1]["response"]
            backend.script(http_error(400, f"I do not like {self.MARKER}"))
            assert_error(await running.http.post("/v1/responses", json=turn(**secret, store=False)), 400)
            for response_id in (first["id"], streamed["id"]):
                assert_error(await running.http.get(f"/v1/responses/{response_id}"), 404)
            backend.script(chat("Good."))
            await create(running.http, input="This one may be kept.")
            assert self.MARKER.encode() not in self.bytes_on_disk(tmp_path)
            await create(running.http, **secret)
            assert self.MARKER.encode() in self.bytes_on_disk(tmp_path), "this test looks in the wrong place"

    async def test_retention_deletes_at_the_start(self, backend: FakeBackend, tmp_path):
        url = f"sqlite:///{tmp_path}/router.db"
        store = make_store(url)
        await store.open()
        await store.store_response("resp_old", **row(at=1))
        await store.close()
        settings = {"endpoints": [{"url": backend.url, "kind": "openai-chat"}]}
        async with running_router(**settings, database={"url": url, "retention_days": 0}) as running:
            assert (await running.http.get("/v1/responses/resp_old")).status_code == 200, "0 means: keep for ever"
        async with running_router(**settings, database={"url": url, "retention_days": 1}) as running:

            async def gone() -> bool:
                return (await running.http.get("/v1/responses/resp_old")).status_code == 404

            await eventually(gone, "the old response is deleted")
