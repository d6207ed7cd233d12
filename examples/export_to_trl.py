"""Export a selection for TRL and train on it with TRL's own trainer."""

from __future__ import annotations

import tempfile
from pathlib import Path

from small import make_model, make_pool
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DatasetMixtureConfig, SFTConfig, SFTTrainer, TrlParser
from trl.scripts.utils import get_dataset

import pyids


def main(folder: Path) -> None:
    pool, vectors = make_pool(folder)
    model = str(make_model(folder))
    with pyids.Selection.open(
        folder / "run",
        data=str(pool),
        embeddings_file=str(vectors),
        budget=16,
        rounds=1,
        clusters=4,
    ) as selection:
        selection.draw()
        exported = selection.export(folder / "for-trl", format="trl")

    # What `trl sft --config for-trl/sft.yaml --model_name_or_path model` does.
    words = ["--config", exported / "sft.yaml", "--output_dir", folder / "trained"]
    words += ["--max_steps", "2", "--report_to", "none", "--use_cpu", "True", "--bf16", "False"]
    mixture, arguments = TrlParser([DatasetMixtureConfig, SFTConfig]).parse_args_and_config(
        [str(word) for word in words]
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=get_dataset(mixture)["train"],
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    print(f"TRL trained on {len(trainer.train_dataset)} rows")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
