"""What this machine reaches: matrix products by type, memory, and messages between two processes. Seconds of each are given.

Products as in `nn/rate.py`; memory by the sum of a vector that no cache holds (McCalpin 1995, STREAM, reads alone); messages by
torch's all-reduce in its ring (gloo), of which each process sends `2 (n-1)/n` of the bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from modelwright.nn.device import synchronise
from modelwright.nn.rate import OTHER_SIDE, SIDE

VECTOR_BYTES = 1 << 28
MESSAGE_BYTES = 1 << 26


@torch.no_grad()
def products(kind: str, device: torch.device, seconds: float) -> float:
    """Best FLOP/s of square products in `fp32`, `bf16`, `fp16`, or operations a second in `int8`."""
    side = SIDE.get(device.type, OTHER_SIDE)
    if kind == "int8":
        left = torch.ones((side, side), dtype=torch.int8, device=device)
        return 2.0 * side**3 / _best(lambda: torch._int_mm(left, left), device, seconds)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    values = torch.full((side, side), 0.5, dtype=dtype, device=device)
    out = torch.empty_like(values)
    return 2.0 * side**3 / _best(lambda: torch.mm(values, values, out=out), device, seconds)


def kinds(device: torch.device) -> list[str]:
    """Types that the device has fast products in."""
    if device.type == "cuda":
        return ["fp32", "fp16", *(["bf16"] if torch.cuda.get_device_capability(device) >= (8, 0) else [])]
    has = torch.cpu.get_capabilities()
    found = ["fp32"]
    if has.get("avx512_bf16") or has.get("amx_bf16"):
        found.append("bf16")
    if has.get("avx512_vnni") or has.get("avx_vnni") or has.get("amx_int8"):
        found.append("int8")
    return found


@torch.no_grad()
def bandwidth(device: torch.device, seconds: float) -> float:
    """Bytes a second of reading memory that no cache holds."""
    vector = torch.ones(VECTOR_BYTES // 4, device=device)
    return VECTOR_BYTES / _best(vector.sum, device, seconds)


def _best(call: object, device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call, after one to warm up."""
    assert callable(call)
    call()
    synchronise(device)
    best_s, end_s = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        call()
        synchronise(device)
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s


def link(seconds: float) -> float:
    """Bytes a second that one of two processes of this machine sends to the other."""
    with TemporaryDirectory() as folder:
        code = "import sys; from modelwright.nn.bench import peer; peer(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))"
        start = [sys.executable, "-c", code]
        both = [
            subprocess.Popen([*start, str(rank), folder, str(seconds)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
            for rank in range(2)
        ]
        try:
            told = [process.communicate(timeout=60 + 2 * seconds)[0] for process in both]
        finally:
            for process in both:
                process.kill()
                process.wait()
    return float(json.loads(told[0].splitlines()[-1]))


def peer(rank: int, folder: str, seconds: float) -> None:
    """One of the two; the first prints the rate."""
    import os

    from torch import distributed

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    distributed.init_process_group("gloo", init_method=f"file://{Path(folder).resolve()}/meet", rank=rank, world_size=2)
    message = torch.ones(MESSAGE_BYTES // 4)
    distributed.all_reduce(message)
    turns = torch.tensor([1.0])
    start_s = time.perf_counter()
    distributed.all_reduce(message)
    turns[0] = max(1.0, seconds / max(time.perf_counter() - start_s, 1e-6))
    distributed.broadcast(turns, 0)
    start_s = time.perf_counter()
    for _ in range(int(turns)):
        distributed.all_reduce(message)
    took_s = (time.perf_counter() - start_s) / int(turns)
    if rank == 0:
        print(json.dumps(MESSAGE_BYTES / took_s))
    distributed.destroy_process_group()
