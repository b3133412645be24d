"""What every kind of server must do, whichever it is: a new one is a file in backends/kinds/, its answers among the
samples of tests/test_discovery.py, and passes this."""

import asyncio
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends.kinds.server
from backends.kinds import KINDS, LEXICON, kind_of
from backends.kinds.server import Memory, ModelFacts
from backends.kinds.words import COMMON, Words
from core.config import EndpointConfig
from core.config_checks import parse_config
from core.errors import BackendError, BackendRefused, BackendTimeout, BackendUnreachable, TooManyRequests
from tests.test_discovery import MISSING, SAMPLES, Server, discover, hang
from tests.test_error_words import OVERFLOWS, ROLES, UNSUPPORTED
from tests.turns import soon

KNOWN = {name: kind for name, kind in KINDS.items() if kind.is_known}
each_kind = pytest.mark.parametrize("kind", KNOWN)

NONSENSE = (None, [], "text", 7, {"models": 3, "data": "x", "running": [None, 1], "version": 5})
FAILURES = (
    BackendUnreachable("away"),
    BackendTimeout("late"),
    BackendError("no JSON"),
    TooManyRequests("busy"),
    BackendRefused("no", status=404),
)


class TestTheFiles:
    def test_every_kind_has_its_answers_among_the_samples(self):
        assert KNOWN.keys() == SAMPLES.keys()

    def test_only_a_kind_that_is_left_open_is_not_known(self):
        assert KINDS.keys() - KNOWN.keys() == {EndpointConfig("http://x").kind}

    @pytest.mark.parametrize("name", KINDS)
    def test_a_name_finds_its_kind(self, name):
        assert kind_of(EndpointConfig("http://x", kind=name)) == KINDS[name]

    def test_nothing_that_recognises_one_recognises_another(self):
        for fact in ("owner", "hosts", "marks"):
            facts = [value for kind in KINDS.values() if (value := getattr(kind, fact))]
            assert len(facts) == len(set(facts)), f"two kinds of one {fact}"


SAID = {"reasoning_efforts": ["low"], "reasoning_replay": "none", "structured_outputs": "refuse"}


@each_kind
class TestSettings:
    """What the settings say of an endpoint comes before what is usual for its kind, also where that was found by
    asking."""

    def test_they_come_first(self, kind):
        (config,) = parse_config({"endpoints": [{"url": "http://x", "kind": kind, **SAID}]}).endpoints
        said = kind_of(config)
        assert (said.efforts, said.reasoning_key, said.structured_outputs) == (("low",), None, "refuse")
        assert replace(said, efforts=KINDS[kind].efforts, reasoning_key=KINDS[kind].reasoning_key) == replace(
            KINDS[kind], structured_outputs="refuse"
        )

    def test_of_a_kind_that_was_found_too(self, kind):
        (config,) = parse_config({"endpoints": [{"url": "http://x", **SAID}]}).endpoints
        before = replace(KINDS[kind], efforts=("max",), reasoning_key="elsewhere")
        found = kind_of(config, before)
        assert (found.name, found.efforts, found.reasoning_key) == (kind, ("low",), None)
        assert kind_of(EndpointConfig("http://x"), before) == replace(KINDS[kind], is_found=True), "those of others end"
        assert found.is_same(KINDS[kind])

    @pytest.mark.parametrize("url", ["http://x", "http://x/v1"])
    def test_the_api_of_one_that_was_found_begins_at_v1(self, kind, url):
        found = kind_of(EndpointConfig(url), KINDS[kind])
        assert found.addresses(url)[1] == "http://x/v1"

    def test_the_api_of_one_that_is_configured_begins_where_its_url_says(self, kind):
        root, base = KINDS[kind].addresses("http://x/api")
        assert root == "http://x/api"
        assert base == ("http://x/api/v1" if KINDS[kind].adds_v1 else root)


@each_kind
class TestNames:
    def test_its_own_name_is_taken_as_it_is(self, kind):
        models = {"a": ModelFacts(), "a:latest": ModelFacts(aliases=("a",)), "b": ModelFacts(aliases=("a",))}
        assert KINDS[kind].name_in(models, "a") == "a"

    @given(
        models=st.dictionaries(
            st.text(max_size=12), st.builds(ModelFacts, aliases=st.tuples(st.text(max_size=12))), max_size=5
        ),
        wanted=st.text(max_size=12),
    )
    def test_whatever_is_wanted_gets_a_name_that_it_has_or_none(self, kind, models, wanted):
        found = KINDS[kind].name_in(models, wanted)
        assert found is None or found in models
        if wanted in models:
            assert found == wanted


@each_kind
class TestDiscovery:
    @pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
    async def test_a_listing_that_fails_is_raised_and_the_memory_is_gone(self, kind, failure):
        answers, listing = SAMPLES[kind]
        memory = Memory({"/props"}, "1.0")
        with pytest.raises(type(failure)):
            await discover(kind, Server(answers | {listing: failure}), memory)
        assert memory == Memory()

    @pytest.mark.parametrize(
        "answer", [{"error": "Unexpected endpoint or method. (GET /x)"}, "text", 7, {"data": 3, "models": 3}]
    )
    async def test_an_answer_that_is_no_listing_is_raised(self, kind, answer):
        answers, listing = SAMPLES[kind]
        with pytest.raises(BackendError, match="no list of models"):
            await discover(kind, Server(answers | {listing: answer}))

    @pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
    async def test_what_fails_beside_it_leaves_the_models(self, kind, failure):
        answers, listing = SAMPLES[kind]
        whole = await discover(kind, Server(answers))
        found = await discover(kind, Server({listing: answers[listing]}, otherwise=failure))
        assert list(found.models) == list(whole.models)

    @pytest.mark.parametrize("answer", NONSENSE, ids=str)
    async def test_nonsense_beside_it_leaves_the_models(self, kind, answer):
        answers, listing = SAMPLES[kind]
        whole = await discover(kind, Server(answers))
        found = await discover(kind, Server({listing: answers[listing]}, otherwise=answer))
        assert list(found.models) == list(whole.models)

    async def test_rows_that_are_no_models_are_left_out(self, kind):
        _, listing = SAMPLES[kind]
        rows = [None, 1, "x", {}, {"id": ""}, {"name": 3, "id": 3}, {"id": "good", "name": "good"}]
        found = await discover(kind, Server({listing: {"models" if kind == "ollama" else "data": rows}}))
        assert list(found.models) == ["good"]

    async def test_what_hangs_beside_it_holds_nothing_up(self, kind, monkeypatch):
        monkeypatch.setattr(backends.kinds.server, "GRACE_S", 0.02)
        answers, listing = SAMPLES[kind]
        async with soon():
            found = await discover(kind, Server({listing: answers[listing]}, otherwise=hang))
        assert found.models, "the listing came"
        assert len(asyncio.all_tasks()) == 1, "no question is left open"

    async def test_a_cancelled_look_leaves_nothing_open(self, kind):
        look = asyncio.create_task(discover(kind, Server({}, otherwise=hang)))
        await asyncio.sleep(0.01)
        look.cancel()
        await asyncio.gather(look, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1, "no question is left open"

    @pytest.mark.parametrize(
        "failure", [MISSING, BackendRefused("no", status=404)], ids=lambda failure: type(failure).__name__
    )
    async def test_a_question_that_was_refused_is_not_asked_again(self, kind, failure):
        answers, listing = SAMPLES[kind]
        server, memory = Server({listing: answers[listing]}, otherwise=failure), Memory()
        for _ in range(3):
            await discover(kind, server, memory)
        assert server.asked.count(listing) == 3
        assert all(server.asked.count(path) == 1 for path in server.asked if path != listing)

    async def test_a_question_that_timed_out_is_asked_again(self, kind):
        answers, listing = SAMPLES[kind]
        server, memory = Server({listing: answers[listing]}, otherwise=BackendTimeout("late")), Memory()
        for _ in range(2):
            await discover(kind, server, memory)
        assert all(server.asked.count(path) == 2 for path in server.asked)

    async def test_the_version_is_asked_once(self, kind):
        answers, _ = SAMPLES[kind]
        server, memory = Server(answers), Memory()
        versions = [(await discover(kind, server, memory)).version for _ in range(2)]
        assert versions[0] == versions[1]
        assert server.asked.count("/api/version") + server.asked.count("/version") <= 1


class TestWords:
    """What a kind knows of errors is in words that one of its servers has used: `tests/test_error_words.py` has
    them."""

    @pytest.mark.parametrize("kind", [*KINDS, "common"])
    def test_every_word_has_been_seen(self, kind):
        words = COMMON if kind == "common" else KINDS[kind].words
        overflows = [message.lower() for message, _ in OVERFLOWS.values()]
        others = [message.lower() for message, _ in UNSUPPORTED.values()]
        assert [text for text in words.overflow if not any(text in said for said in overflows)] == []
        assert [text for text, _ in words.cannot if not any(text in said for said in others)] == []
        for patterns, texts in (
            (words.limits + words.prompts + words.counted_up_to, overflows),
            (words.parameters, others),
            (words.system, [message for message, what in ROLES.values() if what == "system"]),
            (words.order, [message for message, what in ROLES.values() if what == "order"]),
        ):
            unseen = [p for p in patterns if not any(re.search(p, text, re.IGNORECASE) for text in texts)]
            assert unseen == []

    @pytest.mark.parametrize("kind", [*KINDS, "common"])
    def test_a_pattern_has_one_group(self, kind):
        words = COMMON if kind == "common" else KINDS[kind].words
        for pattern in (*words.limits, *words.prompts, *words.counted_up_to, *words.parameters):
            assert re.compile(pattern).groups == 1, pattern
        for pattern in (*words.system, *words.order):
            assert re.compile(pattern).groups == 0, pattern

    def test_a_proxy_hands_on_the_words_of_every_kind(self):
        for kind in KINDS.values():
            for text in kind.words.overflow:
                assert LEXICON.overflow(f"litellm.BadRequestError: {text}.") is not None, text

    def test_words_are_compared_in_lower_case(self):
        every = [COMMON, *(kind.words for kind in KINDS.values())]
        texts = [text for words in every for text in (*words.overflow, *(text for text, _ in words.cannot))]
        assert texts == [text.lower() for text in texts]
        assert isinstance(every[0], Words)
