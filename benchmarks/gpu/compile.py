"""What the machine code of every kernel takes, for a chip that need not be here."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from harness import load_kernels

# Pipes of a multiprocessor's scheduler: half a warp a cycle, a warp a cycle, an eighth of a warp.
ALU = (
    "FMNMX", "FSETP", "FSEL", "SEL", "ISETP", "IADD3", "LOP3", "SHF", "PRMT", "LEA", "IMNMX",
    "VIMNMX", "PLOP3", "IABS",
)  # fmt: skip
FMA = ("FFMA", "FMUL", "FADD", "IMAD")


class ElsewhereDriver:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def describe(kernel: Any, tools: Path) -> str:
    """Return registers, stack, shared memory and instruction counts on one line."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        dump = [str(tools / "cuobjdump"), "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", text)[0]
    code = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(\w+)", text, flags=re.M))
    del code["NOP"]
    product = next((name for name in ("HGMMA", "HMMA") if name in code), "-")
    loads = next((name for name in ("UTMALDG", "LDGSTS") if name in code), "LDG")
    return (
        f"warps={kernel.metadata.num_warps} regs={registers:>3} stack={stack:>3}"
        f" shared={kernel.metadata.shared // 1024:>3}K {product:5} {loads:7}"
        f" instructions={code.total():>4} alu={sum(code[n] for n in ALU):>4}"
        f" fma={sum(code[n] for n in FMA):>4} mufu={code['MUFU']:>3} shfl={code['SHFL']:>3}"
        f" membar={code['MEMBAR']}"
    )


def compile_all(capability: int) -> int:
    """Compile what each function launches, print what it takes; 1 if tensor cores lie idle."""
    import triton
    from triton.runtime.jit import JITFunction

    triton.runtime.driver.set_active(ElsewhereDriver(capability))
    kernels = load_kernels()
    if capability < 90:
        kernels.assign.has_tma = kernels.loss.has_tma = lambda device: False
    tools = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
    compile_, seen, slow = JITFunction.run, set(), set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = compile_(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            line = describe(kernel, tools)
            flags = [n for n in ("CERTIFY", "HAS_SOFTCAP", "WEIGHTED", "SPLIT") if options.get(n)]
            print(f"{self.__name__ + ' ' + ' '.join(flags).lower():29} {line}", flush=True)
            if self.__name__ in ("_nearest_kernel", "_part_kernel") and "HGMMA" not in line:
                slow.add(self.__name__)
        return kernel

    JITFunction.run = compile_only  # type: ignore[method-assign]  # launches become compilations
    print(f"triton {triton.__version__}, compute capability {capability / 10}")
    with torch.no_grad():
        launch_all(kernels)
    print(f"{len(seen)} kernels compiled")
    if slow and capability >= 90:
        print(f"no tensor cores in {', '.join(sorted(slow))}")
    return 1 if slow and capability >= 90 else 0


def launch_all(kernels: Any) -> None:
    """Call every function that launches a kernel, at shapes that take the launches in use."""
    assign, update, loss, pool = kernels.assign, kernels.update, kernels.loss, kernels.pool
    x, centers = torch.randn(512, 768), torch.randn(300, 768)
    prepared = assign.prepare_centers(centers, assign.shift_of(centers))
    rows = assign.prepare_rows(x, prepared, torch.full((), assign.NONE_BAD))
    labels, scratch = torch.zeros(512, dtype=torch.int32), assign.Scratch.of(512, x.device)
    for precision in ("exact", "half", "tf32"):
        launch = assign.NEAREST_LAUNCHES[0]
        assign.nearest(rows, prepared, labels, scratch, precision=precision, launch=launch)
    assign.distances(x, centers, labels)
    states, head = torch.zeros(2, 256, 1024, dtype=torch.bfloat16)
    targets = torch.zeros(256, dtype=torch.int64)
    for softcap, launch in ((None, loss.LAUNCHES[0]), (30.0, loss.LAUNCHES[2])):
        options = {"bias": None, "softcap": softcap, "ignore_index": -100}
        loss.token_nll(states, head, targets, **options, launch=launch)
    loss.blocked_token_nll(states, head, targets, **options)
    bounds = torch.tensor([0, 100, 256])
    mean, count = loss.example_nll(torch.zeros(256), targets, bounds, ignore_index=-100)
    loss.cluster_nll(mean, torch.zeros(2, dtype=torch.int64), 3, example_count=count)
    scale = update.FixedScale.of(update.largest_values(x), 1.0, 512)
    sums = update.Sums.zeros(300, 768, x.device)
    update.add_rows(x, labels, None, scale, sums)
    moved = torch.zeros(516, dtype=torch.int32)
    update.move_rows(x, labels, labels, None, scale, sums, moved)
    # Two sequences are split into chunks, many are not.
    hidden, mask = torch.zeros(2, 512, 1024, dtype=torch.bfloat16), torch.ones(2, 512)
    for mode in ("mean", "weighted_mean", "cls"):
        pool.pool(hidden, mask.long(), mode=mode, normalize=True)
    pool.pool(hidden.repeat(4, 1, 1), mask.long().repeat(4, 1), mode="mean", normalize=True)
    pool.pool_packed(hidden.view(-1, 1024), 512 * torch.arange(3), mode="mean", normalize=True)
