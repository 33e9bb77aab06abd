"""Pack an installed environment into pieces, for a machine with a GPU that reaches no package registry.

    python3.11 -m venv /tmp/env && /tmp/env/bin/pip install '.[gpu,nf4]' 'trl==1.16.*'
    python benchmarks/gpu_steps/carry.py /tmp/env pieces --capability 90
    # there, with the pieces in a folder of this repository; LIBRARIES is site-packages/nvidia of a PyTorch for CUDA 13
    for piece in pieces/*.xz; do xz -d "$piece" & done; wait; cat pieces/piece.* | tar -x -C /
    ln -s LIBRARIES/{cu13,cudnn,cusparselt,nvshmem} /tmp/env/lib/python3.11/site-packages/nvidia/
    VLLM_USE_FLASHINFER_SAMPLER=0 PYTHONPATH=$PWD python3 benchmarks/gpu_check.py --python /tmp/env/bin/python

Of 9 GB about 0.5 are left: what no step imports stays behind, and libraries keep the code of one GPU. NVIDIA's own
libraries (cuBLAS, cuDNN and the like, not NCCL) stay behind too. The interpreter goes along. What no process has
imported here is compiled there, which takes half a minute once.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

RAW = 64 * 2**20
"""Bytes of a piece before it is compressed."""

MAGIC = struct.pack("<I", 0xBA55ED50)
PTX, ELF = 1, 2

LEFT_OUT = (
    "*/nvidia/cu13", "*/nvidia/cudnn", "*/nvidia/cusparselt", "*/nvidia/nvshmem",
    "*/site-packages/nvidia_cutlass_dsl*", "*/site-packages/tilelang*", "*/site-packages/tokenspeed*",
    "*/site-packages/flashinfer*", "*/site-packages/llvmlite*", "*/site-packages/numba*", "*/site-packages/nccl",
    "*/site-packages/PyNvVideoCodec*", "*/site-packages/z3*", "*/site-packages/mistral_common",
    "*/site-packages/pycountry", "*/site-packages/anthropic", "*/site-packages/cudnn",
    "*/site-packages/instanttensor", "*/site-packages/quack*", "*/site-packages/pip", "*/site-packages/uv",
    "*/bin/uv*", "*/site-packages/cv2", "*/site-packages/opencv_python_headless*", "*/site-packages/sklearn",
    "*/site-packages/online_dpo", "*/torch/include", "*/torch/test", "*/torch/share", "*/ptxas-blackwell",
    "*/nvdisasm", "*/triton/FileCheck", "*/triton/backends/amd/lib", "*/triton/backends/nvidia/lib/cupti",
    "*/libproton.so", "*/_vllm_fa2_C*", "*/vllm/vllm-rs", "*/third_party/deep_gemm", "*/third_party/fmha_sm100",
    "*/ray/jars", "*/ray/rllib", "*/ray/dashboard/client", "*/tests", "*.a", "*.pth", "*/libbitsandbytes_rocm*",
    "*/libbitsandbytes_cuda12*", "*/libbitsandbytes_cuda11*", "*/libbitsandbytes_xpu*", "*/lib/python3.*/test",
    "*/lib/python3.*/idlelib", "*/lib/python3.*/ensurepip", "*/lib/python3.*/config-*",
)  # fmt: skip
"""What no step of `gpu_check.py` imports, and code for GPUs of other makers."""

EMPTY_CV2 = b"def __getattr__(name):\n    if name.startswith('__'):\n        raise AttributeError(name)\n    return 0\n"
"""In the place of OpenCV, which vLLM imports for images."""


class Part(NamedTuple):
    """Code for one kind of GPU inside a fat binary."""

    kind: int  # PTX or ELF
    capability: int  # 90 for 9.0
    start: int  # of the code in the file
    size: int


def fat_binaries(data: bytes | bytearray) -> Iterator[list[Part]]:
    """The parts of each fat binary in a library, as `nvcc` lays them out."""
    place = data.find(MAGIC)
    while place >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, place + 4)
        end = place + header + size
        if version != 1 or header != 16 or end > len(data):
            place = data.find(MAGIC, place + 4)  # four bytes that happen to be the same
            continue
        at, parts = place + header, []
        while at < end:
            kind, _, own, length = struct.unpack_from("<HHIQ", data, at)
            parts.append(Part(kind, struct.unpack_from("<I", data, at + 28)[0], at + own, length))
            at += own + length
        yield parts
        place = data.find(MAGIC, end)


def keep_one(data: bytearray, capability: int) -> int:
    """Write zeros over the code that a GPU of `capability` does not choose; offsets stay. Returns the bytes written."""
    zeroed = 0
    for parts in list(fat_binaries(data)):
        older = [part for part in parts if part.capability <= capability]
        # Machine code runs within a generation; without any, the driver compiles the newest text.
        own = [part for part in older if part.kind == ELF and part.capability // 10 == capability // 10]
        choice = own or [part for part in older if part.kind == PTX]
        newest = max((part.capability for part in choice), default=None)
        for part in parts:
            if part not in choice or part.capability != newest:
                data[part.start : part.start + part.size] = bytes(part.size)
                zeroed += part.size
    return zeroed


class Pieces(io.RawIOBase):
    """A file that begins another one after every `RAW` bytes and compresses it beside what goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._held, self._count = folder, bytearray(), 0
        self._pool, self._running = ProcessPoolExecutor(), list[object]()

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[call-overload]
        self._held += view
        while len(self._held) >= RAW:
            self._give(bytes(self._held[:RAW]))
            del self._held[:RAW]
        return len(view)

    def _give(self, raw: bytes) -> None:
        path = self._folder / f"piece.{self._count:03}.xz"
        self._running.append(self._pool.submit(compress, raw, path))
        self._count += 1

    def close(self) -> None:
        if not self.closed:
            self._give(bytes(self._held))
            self._pool.shutdown()
            for done in self._running:
                done.result()  # type: ignore[attr-defined]
        super().close()


def compress(raw: bytes, path: Path) -> None:
    path.write_bytes(lzma.compress(raw, preset=2))


def pack(environment: Path, out: Path, capability: int) -> None:
    """Write the pieces of an environment and its interpreter."""
    out.mkdir(parents=True)
    python = (environment / "bin/python").resolve()
    home = python.parents[1]
    with Pieces(out) as pieces, tarfile.open(fileobj=pieces, mode="w|", bufsize=2**20) as tar:
        for folder in (environment, home / "lib", home / "include"):
            for path in sorted(walk(folder)):
                add(tar, path, capability)
        for path in {python, home / "bin/python3", home / "bin/python"}:
            if path.exists():
                tar.add(path, recursive=False)
        site = next((environment / "lib").glob("python3.*")) / "site-packages"
        info = tarfile.TarInfo(str(site / "cv2/__init__.py").lstrip("/"))
        info.size = len(EMPTY_CV2)
        tar.addfile(info, io.BytesIO(EMPTY_CV2))


def walk(folder: Path) -> Iterator[Path]:
    """Files and links of a folder that go along."""
    for place, names, files in os.walk(folder):
        linked = [name for name in names if (Path(place) / name).is_symlink()]
        names[:] = [name for name in names if name not in linked and is_wanted(Path(place) / name, folder)]
        yield from (path for name in [*files, *linked] if is_wanted(path := Path(place) / name, folder))


def is_wanted(path: Path, folder: Path) -> bool:
    if path.name == "site-packages" and not (folder / "bin").exists():
        return False  # the interpreter's own packages
    return not any(fnmatch(str(path), pattern) for pattern in LEFT_OUT)


def add(tar: tarfile.TarFile, path: Path, capability: int) -> None:
    """A file as it is; a large library without what another GPU would need."""
    if path.is_symlink() or ".so" not in path.suffixes or path.stat().st_size < 2**20:
        tar.add(path, recursive=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        data = bytearray(path.read_bytes())
        keep_one(data, capability)
        copy.write_bytes(data)
        copy.chmod(path.stat().st_mode)
        if path.name == "libtriton.so":
            subprocess.run(["strip", "--strip-unneeded", copy], check=True)  # 460 MB become 180
        tar.add(copy, arcname=str(path), recursive=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path, help="a virtual environment; it lies at the same place there")
    parser.add_argument("out", type=Path, help="folder of the pieces; must not exist yet")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU: 90 for an H100, 80 for an A100")
    args = parser.parse_args()
    pack(args.environment.absolute(), args.out, args.capability)
    sizes = [path.stat().st_size for path in args.out.iterdir()]
    print(f"{len(sizes)} pieces, {sum(sizes) / 1e6:.0f} MB, the largest {max(sizes) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
