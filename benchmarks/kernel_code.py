"""What the machine code of every kernel takes, for a chip that need not be here.

    python benchmarks/kernel_code.py 90       compute capability: 90 is Hopper

Needs torch and triton, no GPU. Prints a line a kernel: registers, stack, shared memory, counts of
instructions in all and in the longest loop.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Triton decides when it is imported whether it interprets.
os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).parent / "gpu"))

import torch
from harness import load_kernels

# What goes through the pipe that takes two cycles an instruction.
ALU = re.compile("FMNMX|FSETP|F?SEL|ISETP|IADD3|LOP3|SHF|PRMT|LEA|V?IMNMX|PLOP3|IABS")


def loop_of(code: list[tuple[int, str, str]]) -> list[str]:
    """Operations of the longest loop: what lies between a jump back and its target."""
    jumps = [(int(to, 16), at) for at, name, rest in code if name == "BRA"
             for to in re.findall(r"(0x[0-9a-f]+)$", rest)]  # fmt: skip
    first, last = max(jumps, key=lambda jump: jump[1] - jump[0])
    return [name for at, name, _ in code if first <= at <= last]


def describe(kernel: Any, tools: Path) -> str:
    """Return registers, stack, shared memory and instruction counts on one line."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        dump = [str(tools / "cuobjdump"), "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", text)[0]
    line = r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(\w+)([^;]*);"
    code = [(int(at, 16), name, rest.strip()) for at, name, rest in re.findall(line, text, re.M)]
    code = [op for op in code if op[1] != "NOP"]
    count, loop = Counter(name for _, name, _ in code), loop_of(code)
    alu = [sum(bool(ALU.fullmatch(name)) for name in ops) for ops in (count.elements(), loop)]
    product = next((name for name in ("HGMMA", "HMMA") if name in count), "-")
    loads = next((name for name in ("UTMALDG", "LDGSTS") if name in count), "LDG")
    return (
        f"regs={registers:>3} stack={stack:>3} shared={kernel.metadata.shared // 1024:>3}K"
        f" {product:5} {loads:7} ops={len(code):>4} alu={alu[0]:>4} mufu={count['MUFU']:>3}"
        f" membar={count['MEMBAR']:>2}; longest loop: ops={len(loop):>4} alu={alu[1]:>4}"
    )


def compile_all(capability: int) -> int:
    """Compile what each function launches, print what it takes; 1 if tensor cores lie idle."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    target = GPUTarget("cuda", capability, 32)
    # As much of a driver as compiling needs.
    driver = SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0)
    driver.get_current_stream = lambda device: 0
    triton.runtime.driver.set_active(driver)
    kernels, seen, lines = load_kernels(), set[str](), list[str]()
    if capability < 90:
        for module in (kernels.assign, kernels.certify, kernels.loss):
            module.has_tma = lambda device: False
    tools = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
    compile_ = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = compile_(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            named = ("CERTIFY", "COUNTED", "HAS_SOFTCAP", "WEIGHTED", "SPLIT")
            flags = " ".join(name.lower() for name in named if options.get(name))
            lines.append(f"{self.__name__.replace('_kernel', '')[1:] + ' ' + flags:21}")
            lines[-1] += describe(kernel, tools)
            print(lines[-1], flush=True)
        return kernel

    JITFunction.run = compile_only  # type: ignore[method-assign]  # launches become compilations
    print(f"triton {triton.__version__}, compute capability {capability / 10}")
    with torch.no_grad():
        launch_all(kernels)
    slow = [line for line in lines if line.startswith(("nearest", "part")) and " HGMMA" not in line]
    print(f"{len(seen)} kernels compiled; without the tensor cores of Hopper: {len(slow)}")
    return 1 if slow and capability >= 90 else 0


def launch_all(kernels: Any) -> None:
    """Call every function that launches a kernel, at shapes that take the launches in use."""
    assign, update, loss, pool = kernels.assign, kernels.update, kernels.loss, kernels.pool
    x, centers = torch.randn(512, 768), torch.randn(300, 768)
    prepared = assign.prepare_centers(centers, assign.shift_of(centers))
    rows = assign.prepare_rows(x, prepared, torch.full((), assign.NONE_BAD))
    labels, scratch = torch.zeros(512, dtype=torch.int32), assign.Scratch.of(512, x.device)
    for precision in ("exact", "half"):
        how = {"precision": precision, "launch": assign.NEAREST_LAUNCHES[0]}
        assign.nearest(rows, prepared, labels, scratch, **how)
    assign.distances(x, centers, labels)
    states, head = torch.zeros(2, 256, 1024, dtype=torch.bfloat16)
    targets = torch.zeros(256, dtype=torch.int64)
    for softcap in (None, 30.0):
        options = {"bias": None, "softcap": softcap, "ignore_index": -100}
        loss.token_nll(states, head, targets, **options, launch=loss.LAUNCHES[0])
    bounds = torch.tensor([0, 100, 256])
    loss.example_nll(torch.zeros(256), targets, bounds, ignore_index=-100)
    scale = update.FixedScale.of(update.largest_values(x), 1.0, 512)
    sums = update.Sums.zeros(300, 768, x.device)
    update.add_rows(x, labels, None, scale, sums)
    moved = torch.zeros(516, dtype=torch.int32)
    update.move_rows(x, labels, labels, None, scale, sums, moved)
    # One sequence is split into chunks, many are not.
    hidden, mask = torch.zeros(1, 512, 1024, dtype=torch.bfloat16), torch.ones(1, 512).long()
    pool.multiprocessors = lambda device: 2
    for mode in ("mean", "weighted_mean", "cls"):
        pool.pool(hidden, mask, mode=mode, normalize=True)
    pool.pool(hidden.repeat(4, 1, 1), mask.repeat(4, 1), mode="mean", normalize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capability", type=int, help="90 for Hopper")
    sys.exit(compile_all(parser.parse_args().capability))
