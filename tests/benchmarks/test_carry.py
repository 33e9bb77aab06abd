"""An environment that is carried to a machine with a GPU: the code that libraries keep, and what is in the pieces."""

from __future__ import annotations

import importlib.util
import io
import lzma
import struct
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PTX, ELF = 1, 2


@pytest.fixture(scope="module")
def carry() -> ModuleType:
    spec = importlib.util.spec_from_file_location("carry", ROOT / "benchmarks/gpu_steps/carry.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["carry"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fat(*parts: tuple[int, int, bytes]) -> bytes:
    """A fat binary of parts `(kind, capability, code)`."""
    body = b""
    for kind, capability, code in parts:
        body += struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(code), 0, 0, 8, 0, capability).ljust(64, b"\0") + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        ([(ELF, 80, b"eight"), (ELF, 90, b"nine"), (ELF, 100, b"ten"), (PTX, 90, b"text")], b"nine"),
        (
            [(ELF, 80, b"eight"), (PTX, 75, b"older"), (PTX, 80, b"newer"), (PTX, 100, b"newest")],
            b"newer",
        ),  # 8.0 is no 9.0
        ([(ELF, 100, b"ten")], None),
    ],
)
def test_a_library_keeps_the_code_that_its_gpu_chooses(
    carry: ModuleType, parts: list[tuple[int, int, bytes]], kept: bytes | None
) -> None:
    around = b"\x7fELF" + carry.MAGIC + b"not a header", b"the end"
    before = around[0] + fat(*parts) + around[1]
    data = bytearray(before)
    zeroed = carry.keep_one(data, 90)
    assert len(data) == len(before) and data.startswith(around[0]) and data.endswith(around[1])
    assert zeroed == sum(len(code) for *_, code in parts if code != kept)
    assert [code in data for *_, code in parts] == [code == kept for *_, code in parts]
    assert [len(found) for found in carry.fat_binaries(data)] == [len(parts)], "headers stay"


def test_pieces_are_a_tar_of_what_is_wanted(carry: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, environment = tmp_path / "home", tmp_path / "env"
    site = environment / "lib/python3.11/site-packages"
    library = b"\0" * 2**20 + fat((ELF, 80, b"old!"), (ELF, 90, b"ours"))
    files = {
        home / "bin/python3.11": b"interpreter",
        home / "lib/python3.11/os.py": b"os",
        home / "lib/python3.11/site-packages/another.py": b"not carried",
        home / "include/Python.h": b"header",
        environment / "pyvenv.cfg": b"home",
        site / "torch/lib/libtorch_cuda.so": library,
        site / "flashinfer/big.py": b"not carried",
        site / "vllm/utils/flashinfer.py": b"of the same name, and not that package",
        site / "pandas/core/_numba/__init__.py": b"another one",
        site / "nvidia/cudnn/libcudnn.so.9": b"not carried",
        site / "nvidia/nccl/libnccl.so.2": b"small",
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to(home / "bin/python3.11")
    monkeypatch.setattr(carry, "RAW", 2**19)
    out = tmp_path / "pieces"
    carry.pack(environment, out, 90)
    pieces = sorted(out.iterdir())
    assert len(pieces) > 2
    raw = b"".join(lzma.decompress(piece.read_bytes()) for piece in pieces)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        found = {f"/{member.name}": member for member in tar}
        link = found.pop(str(environment / "bin/python"))
        contents = {name: tar.extractfile(member).read() for name, member in found.items()}  # type: ignore[union-attr]
    assert link.linkname == str(home / "bin/python3.11")
    assert contents.pop(str(site / "cv2/__init__.py")) == carry.EMPTY_CV2
    wanted = {str(path): content for path, content in files.items() if content != b"not carried"}
    wanted[str(site / "torch/lib/libtorch_cuda.so")] = library.replace(b"old!", bytes(4))
    assert contents == wanted
