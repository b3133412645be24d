"""By which names a server's models are found: its own, Ollama's without their tag, llama-server's in every spelling."""

import pytest

from backends.kinds import KINDS
from backends.kinds.server import ModelFacts

OTHERS = sorted(KINDS.keys() - {"auto", "ollama"})
GEMMA = "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"


def models(*names: str, **aliases: tuple[str, ...]) -> dict[str, ModelFacts]:
    return {name: ModelFacts() for name in names} | {name: ModelFacts(aliases=its) for name, its in aliases.items()}


def name_in(models: dict[str, ModelFacts], wanted: str, kind: str) -> str | None:
    return KINDS[kind].name_in(models, wanted)


@pytest.mark.parametrize("kind", ["ollama", *OTHERS])
def test_its_own_name_is_taken_as_it_is(kind):
    assert name_in(models("a", "a:latest", "a-Q4_0"), "a", kind) == "a"
    assert name_in(models("b"), "a", kind) is None


def test_latest_can_be_left_out_at_ollama():
    assert name_in(models("llama3:latest"), "llama3", "ollama") == "llama3:latest"
    assert name_in(models("llama3"), "llama3:latest", "ollama") == "llama3"
    assert name_in(models("llama3:8b"), "llama3", "ollama") is None


@pytest.mark.parametrize("kind", ["ollama", *OTHERS])
def test_latest_can_be_written_out_at_every_kind(kind):
    assert name_in(models("llama3", "llama3:8b"), "llama3:latest", kind) == "llama3"
    assert name_in(models("llama3", "llama3:latest"), "llama3:latest", kind) == "llama3:latest"
    assert name_in(models("llama3:8b"), "llama3:latest", kind) is None
    assert name_in(models("org/llama3"), "org/llama3:latest", kind) == "org/llama3"
    assert name_in(models("host:80/llama3"), "host:80/llama3:latest", kind) == "host:80/llama3"
    assert name_in(models("a:latest", "b:8b"), "a:latest:latest", kind) is None


@pytest.mark.parametrize("kind", OTHERS)
def test_latest_is_a_part_of_the_name_at_others_but_llama_server(kind):
    found = name_in(models("llama3:latest"), "llama3", kind)
    assert found == ("llama3:latest" if kind == "llama.cpp" else None)


@pytest.mark.parametrize(
    "wanted",
    [
        "ggml-org/gemma-3-4b-it-GGUF",
        "ggml-org/gemma-3-4b-it-gguf:q4_k_m",
        "unsloth/gemma-3-4b-it-GGUF",
        "gemma-3-4b-it-Q4_K_M.gguf",
        "/models/gemma-3-4b-it-Q4_K_M.gguf",
        "C:\\models\\gemma-3-4b-it-Q4_K_M.gguf",
        "gemma-3-4b-it.Q4_K_M.gguf",
        "gemma-3-4b-it-Q4_K_M-00001-of-00002.gguf",
        "ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M.gguf",
        "gemma-3-4b-it",
        "Gemma-3-4B-it:latest",
    ],
)
def test_one_model_of_llama_server_has_many_spellings(wanted):
    assert name_in(models(GEMMA, "qwen3-4b"), wanted, "llama.cpp") == GEMMA
    assert name_in(models(wanted), GEMMA, "llama.cpp") == wanted, "and the other way round"
    assert name_in(models(GEMMA), wanted, "openai-chat") is None, "elsewhere a name is a name"


@pytest.mark.parametrize(
    "quant",
    [
        "Q8_0",
        "UD-Q4_K_XL",
        "IQ4_XS",
        "IQ2_XXS",
        "q4_k_m",
        "BF16",
        "f16",
        "MXFP4",
        "mxfp4_moe",
        "i1-Q4_K_M",
        "Q4_0_4_8",
        "TQ1_0",
    ],
)
def test_quantisations_are_known(quant):
    for name in (f"org/model-7b-{quant}.gguf", f"org/model-7b-GGUF:{quant}"):
        assert name_in(models(name), "model-7b", "llama.cpp") == name
        assert name_in(models(name), "model-7b-Q5_1", "llama.cpp") is None, "another quantisation is another model"


@pytest.mark.parametrize(
    ("name", "without_its_end"),
    [
        ("gemma3:4b", "gemma3"),
        ("qwen3-4b", "qwen3"),
        ("phi-4", "phi"),
        ("gpt-oss-20b", "gpt-oss"),
        ("llama-3.1-8b", "llama-3.1"),
        ("gemma-3-4b-it-qat", "gemma-3-4b-it"),
        ("qwq", ""),
        ("q4", ""),
    ],
)
def test_what_is_no_quantisation_belongs_to_the_name(name, without_its_end):
    file = f"org/{name}-Q8_0.gguf"
    assert name_in(models(file), name, "llama.cpp") == file
    assert name_in(models(name), without_its_end, "llama.cpp") is None


def test_two_that_it_could_be_are_none():
    both = models("gemma-Q4_K_M", "gemma-Q8_0")
    assert name_in(both, "gemma", "llama.cpp") is None
    assert name_in(both, "/models/gemma-Q8_0.gguf", "llama.cpp") == "gemma-Q8_0", "a quantisation decides"


def test_other_names_that_the_server_gave():
    known = models("other", main=("nick", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    for wanted in ("nick", "SmolLM2-135M-Instruct", "smollm2-135m-instruct-GGUF"):
        assert name_in(known, wanted, "llama.cpp") == "main"
    assert name_in(known, "nick", "vllm") == "main"
    assert name_in(models(a=("x",), b=("x",)), "x", "vllm") is None
