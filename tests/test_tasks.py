"""The task runner: what runs, in which order, and how it is stopped. No sockets: a job is a gate that the test
opens."""

import asyncio

import pytest

from core.errors import APIError, ServerError, TooManyRequests
from core.tasks import TaskRunner
from tests.turns import eventually

INTERRUPTED = ServerError("The test stopped it.")


class Log(list[str]):
    """What happened, in order."""

    def job(self, job_id: str, **kwargs: object) -> "Gated":
        return Gated(job_id, self, **kwargs)

    async def reaches(self, *expected: str) -> None:
        await eventually(lambda: self[-len(expected) :] == list(expected), f"{expected} at the end of {self}")


class Gated:
    """A job that runs until its gate is open, or raises then. Its `stop` takes a while."""

    def __init__(
        self, job_id: str, log: Log, *, raises: Exception | None = None, open: bool = False, priority: int = 0
    ) -> None:
        self.id = job_id
        self.priority = priority
        self.gate = asyncio.Event()
        self.stopped_for: list[APIError | None] = []
        self._log = log
        self._raises = raises
        if open:
            self.gate.set()

    async def run(self) -> None:
        self._log.append(f"run {self.id}")
        await self.gate.wait()
        if self._raises:
            raise self._raises
        self._log.append(f"end {self.id}")

    async def stop(self, reason: APIError | None) -> None:
        await asyncio.sleep(0.01)
        self.stopped_for.append(reason)
        self._log.append(f"stop {self.id}")


@pytest.fixture
def log() -> Log:
    return Log()


class TestRunning:
    async def test_those_of_a_lower_priority_go_first_and_the_others_in_order(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        runner.submit(first := log.job("first"))
        for name, priority in (("a", 0), ("b", 5), ("c", -5), ("d", 0), ("e", -5)):
            runner.submit(log.job(name, open=True, priority=priority))
        await log.reaches("run first")
        first.gate.set()
        await log.reaches("end b")
        assert [line[-1] for line in log if line.startswith("run ")][1:] == ["c", "e", "a", "d", "b"]

    async def test_no_more_than_max_concurrent_run_and_the_others_follow_in_order(self, log):
        runner: TaskRunner[Gated] = TaskRunner(2, 10)
        jobs = [log.job(name) for name in "abcde"]
        for job in jobs:
            runner.submit(job)
        await log.reaches("run a", "run b")
        jobs[1].gate.set()
        await log.reaches("end b", "run c")
        jobs[0].gate.set()
        jobs[2].gate.set()
        await log.reaches("end a", "end c", "run d", "run e")
        jobs[3].gate.set()
        jobs[4].gate.set()
        await log.reaches("end d", "end e")

    async def test_a_job_is_known_while_it_waits_and_while_it_runs(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        first, second = log.job("first"), log.job("second")
        runner.submit(first)
        runner.submit(second)
        assert runner.get("first") is first
        assert runner.get("second") is second
        assert runner.get("third") is None
        first.gate.set()
        second.gate.set()
        await log.reaches("end second")
        await eventually(lambda: runner.get("second") is None, "the job is forgotten")
        assert runner.get("first") is None

    async def test_no_more_than_max_queued_wait(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 2)
        jobs = [log.job(name) for name in "abcd"]
        for job in jobs[:3]:
            runner.submit(job)
        with pytest.raises(TooManyRequests) as raised:
            runner.submit(jobs[3])
        assert raised.value.retry_after_s
        jobs[0].gate.set()
        await log.reaches("run b")
        runner.submit(jobs[3])

    async def test_a_job_that_raises_is_stopped_with_an_error_and_the_next_one_runs(self, log, caplog):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        broken = log.job("broken", raises=RuntimeError("the cause"), open=True)
        runner.submit(broken)
        runner.submit(log.job("next", open=True))
        await log.reaches("run broken", "stop broken", "run next", "end next")
        (reason,) = broken.stopped_for
        assert isinstance(reason, ServerError)
        assert "the cause" not in reason.message, "a client reads this"
        assert "the cause" in caplog.text, "the cause is not logged"


class TestCancel:
    async def test_a_queued_job_never_runs(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        running, queued = log.job("running"), log.job("queued")
        runner.submit(running)
        runner.submit(queued)
        await log.reaches("run running")
        assert await runner.cancel("queued") is True
        assert queued.stopped_for == [None]
        assert runner.get("queued") is None
        running.gate.set()
        await log.reaches("run running", "stop queued", "end running")

    async def test_a_running_job_is_stopped_and_the_next_one_runs(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        running = log.job("running")
        runner.submit(running)
        runner.submit(log.job("next", open=True))
        await log.reaches("run running")
        assert await runner.cancel("running", INTERRUPTED) is True
        assert running.stopped_for == [INTERRUPTED]
        await eventually(lambda: "end next" in log, f"the next job ends: {log}")
        assert "end running" not in log

    async def test_a_job_can_be_cancelled_before_its_first_step(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        job = log.job("job")
        runner.submit(job)
        assert await runner.cancel("job") is True
        assert log == ["stop job"]
        runner.submit(log.job("next", open=True))
        await log.reaches("run next", "end next")

    async def test_one_that_has_ended_or_never_was_is_not_there(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        job = log.job("job", open=True)
        runner.submit(job)
        await log.reaches("end job")
        await eventually(lambda: runner.get("job") is None, "the job is forgotten")
        assert await runner.cancel("job") is False
        assert await runner.cancel("unknown") is False
        assert job.stopped_for == []

    @pytest.mark.parametrize("state", ["queued", "running"])
    async def test_whoever_cancels_returns_when_the_job_has_stopped(self, log, state):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        if state == "queued":
            runner.submit(log.job("other"))
        job = log.job("job")
        runner.submit(job)
        await eventually(lambda: len(log) == 1, "the first one runs")
        stopped = []

        async def cancel() -> None:
            await runner.cancel("job")
            stopped.append(len(job.stopped_for))

        await asyncio.gather(*(cancel() for _ in range(4)))
        assert stopped == [1] * 4, f"some returned before it had stopped, or it was stopped again: {stopped}"

    async def test_a_job_is_known_until_it_has_stopped(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        job = log.job("job")
        runner.submit(job)
        await log.reaches("run job")
        cancelling = asyncio.create_task(runner.cancel("job"))
        while not job.stopped_for:
            assert runner.get("job") is job, "it is gone, and nothing has said yet how it ended"
            await asyncio.sleep(0)
        await cancelling
        assert runner.get("job") is None


class TestDrain:
    async def test_running_jobs_get_time_to_end_and_queued_ones_are_stopped(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        running, queued = log.job("running"), log.job("queued")
        runner.submit(running)
        runner.submit(queued)
        await log.reaches("run running")
        draining = asyncio.create_task(runner.drain(5, INTERRUPTED))
        await asyncio.sleep(0)
        running.gate.set()
        await draining
        assert running.stopped_for == []
        assert queued.stopped_for == [INTERRUPTED]
        assert "run queued" not in log

    async def test_what_does_not_end_in_time_is_stopped_with_the_reason(self, log):
        runner: TaskRunner[Gated] = TaskRunner(3, 10)
        jobs = [log.job(name) for name in "abc"]
        for job in jobs:
            runner.submit(job)
        await runner.drain(0.01, INTERRUPTED)
        assert [job.stopped_for for job in jobs] == [[INTERRUPTED]] * 3

    async def test_nothing_is_taken_any_more(self, log):
        runner: TaskRunner[Gated] = TaskRunner(1, 10)
        await runner.drain(1, INTERRUPTED)
        with pytest.raises(TooManyRequests):
            runner.submit(log.job("late"))
        assert log == []
