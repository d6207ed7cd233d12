"""What runs beside the timings: the tests of the kernels, and one whole `pyids run`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, Bench, Record


def run_tests(bench: Bench) -> None:
    """Run the tests of each kernel, all files at a time; a dry run only collects them."""
    options = ["-c", "/dev/null", "--noconftest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    if importlib.util.find_spec("xdist") is not None and not bench.dry:
        options += ["-n", "4", "--dist", "worksteal"]  # a kernel's compilation is most of a test
    # -P: with the tests' folder ahead, the checkout would hide an installed wheel and its core.
    command = [sys.executable, "-P", "-m", "pytest", *options, *["--collect-only"] * bench.dry]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    paths = sorted((ROOT / "tests").glob("test_kernels*.py"))
    children = [subprocess.Popen([*command, str(path)], **pipes) for path in paths]
    for path, child in zip(paths, children, strict=True):
        lines = child.communicate()[0].strip().splitlines() or ["no output"]
        bad = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
        why = [line for line in lines if re.match(r"\S+:\d+: (?!\S+Warning)", line)]
        # 5: nothing to run, as where a file needs the C++ core
        wrong, note = child.returncode not in (0, 5), "; ".join(bad + why)[:2000]
        bench.add(Record("tests", path.name, "pytest", error=lines[-1], note=note, wrong=wrong))


# SmolLM2-135M's shape and MiniLM's, with random weights: what is timed does not depend on them.
MODEL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
         "tie_word_embeddings": True}  # fmt: skip
ENCODER = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
           "num_attention_heads": 12, "vocab_size": 30522}  # fmt: skip


def write_models(folder: Path, texts: list[str]) -> None:
    """Write a language model and an encoder, with a tokenizer made of the texts."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch
    from quality.model import train_tokenizer
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model, encoder = LlamaForCausalLM(LlamaConfig(**MODEL)), BertModel(BertConfig(**ENCODER))
    for name, part in (("model", model), ("encoder", encoder)):
        part.save_pretrained(folder / name)
        train_tokenizer(texts).save_pretrained(folder / name)


def run_driver(bench: Bench) -> None:
    """Run `pyids run` on 10,000 rows on the GPU; built here, from the checkout, if it must be."""
    with tempfile.TemporaryDirectory() as name:
        folder, environment, quiet = Path(name), dict(os.environ), {"stdout": subprocess.DEVNULL}
        if importlib.util.find_spec("pyids") is None:
            pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
            subprocess.run([*pip, "--target", f"{folder}/site", str(ROOT)], check=True, **quiet)
            environment["PYTHONPATH"] = f"{folder}/site"
        sums = [(f"What is {a} + {b}?", f"{a} + {b} is {a + b}.") for a in range(100)
                for b in range(50)]  # fmt: skip
        words = [(f"Spell {n:x}.", "-".join(f"{n:x}")) for n in range(10**6, 10**6 + 5000)]
        rows = [{"prompt": question, "completion": answer} for question, answer in sums + words]
        pool = folder / "pool.jsonl"
        pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if not bench.dry:
            write_models(folder, [text for row in rows for text in row.values()])
        ours = None
        for who, backend in (("pyids run", {}), ("the same, torch", {"PYIDS_BACKEND": "torch"})):
            command = [sys.executable, "-P", "-c", "from pyids.__main__ import main; main()", "run"]
            command += [str(pool), "--budget", "1000", "--clusters", "64", "--rounds", "2"]
            command += ["--output-dir", f"{folder}/run{len(backend)}", "--device", "cuda"]
            command += ["--model", f"{folder}/model", "--encoder", f"{folder}/encoder"]
            if bench.dry:
                command[6:] = ["--help"]
            start = time.monotonic()
            subprocess.run(command, check=True, env=environment | backend, **quiet)
            ms = None if bench.dry else 1e3 * (time.monotonic() - start)
            record = Record("run", f"{len(rows)} rows, 2 rounds", who, ms)
            if bench.dry:
                record.note = "its options only"
            elif ours is None:
                ours = ms
            else:
                record.ratio_to_ours = ms / ours
            bench.add(record)
