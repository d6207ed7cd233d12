"""The configuration of a run: the only owner of defaults.

`RunConfig` is one flat pydantic model. The command line's options and the YAML file are both made
from it, and the one used is saved in the run folder.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    model_validator,
)

from pyids.chat.format_map import PREFIX as MAP_PREFIX
from pyids.chat.formats import check_format
from pyids.errors import ConfigError
from pyids.external import ExternalOptions
from pyids.options import (
    BudgetOptions,
    BudgetUnit,
    ExclusionOptions,
    TargetOptions,
    check_budget_options,
    explain,
    option,
)
from pyids.parsing import (
    check_encoder,
    check_output_dir,
    check_rounds,
    check_url,
    parse_budget,
    parse_bytes,
    parse_clusters,
    parse_data,
    parse_format_map,
    parse_sample,
    split_budget,
)
from pyids.registry import SCORERS, WEIGHT_UPDATES

DEFAULT_ENCODER = "all-MiniLM-L6-v2"

DEFAULT_MODEL = "smollm2-135m-instruct"

# The scorer of a run with a target; those of its parts begin with its name.
TARGET_SCORER = "target"

DEFAULT_LEARNING_RATES = {"lora": 5e-4, "full": 2e-5}

LongText: TypeAlias = Literal["truncate", "chunk"]
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
Budget = Annotated[int | str, BeforeValidator(parse_budget)]
Clusters = Annotated[int | Literal["auto"] | None, BeforeValidator(parse_clusters)]
Sample = Annotated[int | str | None, BeforeValidator(parse_sample)]
Bytes = Annotated[int | None, BeforeValidator(parse_bytes)]


class RunConfig(BudgetOptions, ExclusionOptions, TargetOptions, ExternalOptions):
    """Everything that decides what a run selects, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    data: Annotated[list[str], BeforeValidator(parse_data)] = option(
        "Data", "files, folders, globs or a hub name", min_length=1
    )
    format: Annotated[str, AfterValidator(check_format)] = option(
        "Data",
        "how a row holds its conversation: auto (told of each row), messages, sharegpt, alpaca, "
        "text, or two columns (prompt/completion)",
        "auto",
    )
    format_map: Annotated[str | None, AfterValidator(parse_format_map)] = option(
        "Data",
        "columns of prompt and response (prompt=COLUMN+COLUMN,response=COLUMN), or a YAML file "
        "that names them",
        None,
    )
    limit: int | None = option("Data", "read only the first rows", None, ge=1)
    max_row_bytes: int = option("Data", "bytes of the longest row", 64 << 20, ge=1)
    keep_duplicates: bool = option("Data", "keep exact duplicates", False)
    strict: bool = option("Data", "treat unusable rows as errors instead of skipping them", False)

    budget: Budget = option(
        "Selection", "what to select: rows (10000), a share (5%), or tokens (20M-tokens)"
    )
    rounds: int = option("Selection", "rounds of draw, train, score, re-weight", 3, ge=1)
    seed: int = option("Selection", "seed of every random choice", 0, ge=0, lt=2**63)
    quality: str | None = option(
        "Selection", "column or signal that weights the rows inside a cluster", None
    )
    rating_half_width: float | None = option(
        "Selection",
        "score the quality of rows of each cluster only until the 95% interval of its mean is this "
        "wide either way; the others count as the mean (default: score every row)",
        None,
        gt=0,
    )
    correct_ratings: bool = option(
        "Selection",
        "replace ratings of the quality that are improbable beside those of a row's neighbors",
        False,
    )
    best_response: bool = option(
        "Selection",
        "of several answers to one prompt keep the one that the base model finds likeliest",
        False,
    )
    oversample: int = option(
        "Selection",
        "candidates drawn for each row kept: outliers of a cluster tend to be left out (1: no "
        "screening; 5 for pools with answers that are cut off or belong to other questions)",
        1,
        ge=1,
    )
    allocation: Literal["proportional", "equal"] = option(
        "Selection",
        "the rows a cluster gives: proportional to weight x rows left, or to the weight alone",
        "proportional",
    )

    encoder: Annotated[str, AfterValidator(check_encoder)] = option(
        "Embedding", "encoder folder, hub name or alias", DEFAULT_ENCODER
    )
    embeddings_file: str | None = option(
        "Embedding",
        "precomputed vectors, row i for input row i: a .npy or parquet file (FILE:COLUMN), a Lance "
        "table, a folder or glob of them",
        None,
    )
    embeddings_column: str | None = option(
        "Embedding", "column of the data that holds precomputed vectors", None
    )
    encoder_max_length: int | None = option(
        "Embedding", "longest text in tokens (default: the encoder's own limit)", None, ge=8
    )
    long_text: LongText = option(
        "Embedding", "cut longer texts, or average the vectors of their chunks", "truncate"
    )

    clusters: Clusters = option(
        "Clustering", "number of clusters, or auto (default: by the size of the pool)", None
    )
    kmeans_max_iter: int = option("Clustering", "most Lloyd iterations", 25, ge=1)
    kmeans_init: Literal["k-means++", "random", "two-level"] | None = option(
        "Clustering", "how the first centers are found (default: by the work)", None
    )
    kmeans_sample: Sample = option(
        "Clustering", "rows that the centers are fitted to, or all (default: by the work)", None
    )
    metric: Literal["euclidean", "cosine"] = option("Clustering", "distance", "euclidean")
    zero_vectors: Literal["error", "drop"] = option(
        "Clustering", "rows whose vector is zero, which no cosine places", "error"
    )
    semdedup_threshold: float | None = option(
        "Clustering",
        "drop a row whose vector has at least this cosine to an earlier one of its cluster, "
        "such as 0.95 (default: keep all)",
        None,
        gt=0,
        lt=1,
    )

    model: str = option("Training", "base model: folder, hub name or alias", DEFAULT_MODEL)
    proxy_model: str | None = option(
        "Training", "smaller model that is trained and scored in the rounds instead", None
    )
    finetuning_type: Literal["lora", "full"] = option(
        "Training", "a LoRA adapter, or all weights", "lora"
    )
    lora_rank: int = option("Training", "rank of the LoRA adapter", 16, ge=1)
    learning_rate: float | None = option(
        "Training", "peak learning rate (default: 5e-4 for LoRA, 2e-5 for full)", None, gt=0
    )
    num_train_epochs: int = option("Training", "passes over the rows selected so far", 1, ge=1)
    batch_size: int = option("Training", "rows in an optimizer step", 8, ge=1)
    max_length: int = option("Training", "longest conversation in tokens", 1024, ge=16)

    system: Literal["error", "fold", "drop"] = option(
        "Training",
        "a system turn that the model's chat template refuses: an error, folded into the next "
        "user turn, or dropped",
        "error",
    )

    scorer: Annotated[str, AfterValidator(SCORERS.check)] = option(
        "Scoring", "what a round's score is (with --target: target)", "sound-learnability"
    )
    reward_model: str | None = option(
        "Scoring", "sequence classifier that the scorer reward asks", None
    )
    judge_url: Annotated[str, AfterValidator(check_url)] | None = option(
        "Scoring", "OpenAI-compatible endpoint of the judge; key in OPENAI_API_KEY", None
    )
    judge_model: str | None = option("Scoring", "model at that endpoint", None)
    judge_max_requests: int = option("Scoring", "most requests to the judge in a run", 10_000, ge=1)
    probes_per_cluster: int = option("Scoring", "unseen rows of a cluster scored a round", 8, ge=1)
    weight_update: Annotated[str, AfterValidator(WEIGHT_UPDATES.check)] = option(
        "Scoring",
        "how scores change the cluster weights: exponential, linear, ucb, none",
        "exponential",
    )
    temperature: float | None = option(
        "Scoring",
        "score that multiplies a weight by e (default: from the data)",
        None,
        gt=0,
    )
    min_weight: float = option(
        "Scoring", "smallest weight, as a share of an equal weight", 0.02, ge=0, lt=1
    )

    engine: Literal["local", "ray"] = option("Machine", "where shards are worked on", "local")
    workers: int | None = option(
        "Machine", "tasks at a time (default: 1; on ray the cluster's CPUs, or GPUs)", None, ge=1
    )
    address: str | None = option("Machine", "Ray cluster (default: RAY_ADDRESS, or here)", None)
    task_timeout: float | None = option(
        "Machine", "on ray: seconds until a task is ended and tried elsewhere", None, gt=0
    )
    skip_failing: bool = option(
        "Machine",
        "leave out the rows of a shard on which a task fails each time (an exception, a process "
        "that dies, no end within --task-timeout), instead of ending; they are listed",
        False,
    )
    threads: int | None = option("Machine", "threads (default: every core)", None, ge=1)
    max_memory: Bytes = option(
        "Machine",
        "what clustering may take, as 4GB (default: a quarter of what is left)",
        None,
    )
    device: str = option(
        "Machine", "auto, cpu or cuda", "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$"
    )
    dtype: Dtype = option(
        "Machine", "arithmetic of encoder and language model; part of what is selected", "float32"
    )

    output_dir: Annotated[str, AfterValidator(check_output_dir)] | None = option(
        "Output", "run folder, or s3://bucket/folder (default: runs/<name of the data>)", None
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, options: Any) -> Any:
        """With a target, what a round asks is what helps on it, unless another scorer is named.

        And a budget that names its unit, such as ``20M-tokens``, is taken apart.
        """
        if not isinstance(options, dict):
            return options
        scorer = {"scorer": TARGET_SCORER} if options.get("target") else {}
        return {**scorer, **split_budget(options)}

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.embeddings_file is not None and self.embeddings_column is not None:
            raise ValueError(
                "--embeddings-file and --embeddings-column both name the vectors: give one"
            )
        if self.format_map is not None and self.format != "auto":
            raise ValueError("--format and --format-map both say how rows are read: give one")
        for name in ("target_by", "target_embeddings_file"):
            if getattr(self, name) is not None and self.target is None:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --target: name that too")
        if self.scorer.startswith(TARGET_SCORER) and self.target is None:
            raise ValueError(f"the scorer {self.scorer} needs --target: name rows to select for")
        if isinstance(self.budget, int) and self.budget < self.rounds:
            raise ValueError(
                f"budget {self.budget} is below the {self.rounds} rounds, which draw at least "
                "one row each: raise --budget or lower --rounds"
            )
        check_budget_options(self)
        if self.task_timeout is not None and self.engine != "ray":
            raise ValueError("--task-timeout is for tasks on a cluster: it needs --engine ray")
        for name in ("rating_half_width", "correct_ratings"):
            if getattr(self, name) and self.quality is None:
                raise ValueError(f"--{name.replace('_', '-')} needs --quality: name one")
        if self.quality == "judge" and not (self.judge_url and self.judge_model):
            raise ValueError("the quality judge needs --judge-url and --judge-model: name both")
        for scorer, needed in (
            ("reward", ["reward_model"]),
            ("judge", ["judge_url", "judge_model"]),
        ):
            for name in needed:
                if self.scorer == scorer and getattr(self, name) is None:
                    flag = f"--{name.replace('_', '-')}"
                    raise ValueError(f"the scorer {scorer} needs {flag}: name one")
        return self

    @property
    def row_format(self) -> str:
        """The chat format of the rows: `format`, or the map of columns."""
        return self.format if self.format_map is None else f"{MAP_PREFIX}{self.format_map}"

    @property
    def output_path(self) -> Path:
        """The run folder."""
        if self.output_dir is not None:
            if self.output_dir.startswith("s3://"):
                raise ConfigError(
                    f"{self.output_dir}: open it by pyids.run, pyids.select or a command"
                )
            return Path(self.output_dir)
        name = re.sub(r"[^\w.-]+", "-", Path(self.data[0].rstrip("/")).name).strip("-.")
        return Path("runs") / (name.split(".")[0] or "pyids")

    @property
    def has_vectors(self) -> bool:
        """Whether the vectors are given, in a file or a column, so that no encoder is needed."""
        return self.embeddings_file is not None or self.embeddings_column is not None

    @property
    def round_model(self) -> str:
        """The model that is trained and scored in the rounds."""
        return self.proxy_model or self.model

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or the default of the tuning method."""
        if self.learning_rate is not None:
            return self.learning_rate
        return DEFAULT_LEARNING_RATES[self.finetuning_type]

    @property
    def unit(self) -> BudgetUnit:
        """What the budget counts."""
        return self.budget_unit or "rows"

    def budget_rows(self, n_rows: int) -> int:
        """Rows to select out of `n_rows`, for a budget of rows.

        Raises
        ------
        ConfigError
            The budget is above the pool, or its share is less than one row a round.
        """
        if isinstance(self.budget, int):
            budget = self.budget
        else:
            budget = math.floor(n_rows * float(self.budget.rstrip("%")) / 100 + 1e-9)
        if budget > n_rows:
            raise ConfigError(
                f"budget {budget} is above the {n_rows} usable rows of the pool: "
                "lower --budget, or give it as a share such as 5%"
            )
        check_rounds(f"budget {self.budget} of {n_rows} rows", budget, self.rounds)
        return budget

    def cluster_count(self, n_rows: int, budget_rows: int | None = None) -> int:
        """Clusters for `n_rows` rows: as asked, or sqrt(n / 2) with two rows a cluster and round.

        ``auto`` is not known before the rows are embedded; it counts as not asked here.

        Parameters
        ----------
        n_rows
            Rows of the pool.
        budget_rows
            Rows that the budget comes to; needed where it counts something else.

        Raises
        ------
        ConfigError
            More clusters than rows.
        """
        if isinstance(self.clusters, int):
            if self.clusters > n_rows:
                raise ConfigError(
                    f"clusters {self.clusters} is above the {n_rows} usable rows: lower --clusters"
                )
            return self.clusters
        rows = self.budget_rows(n_rows) if budget_rows is None else budget_rows
        drawable = rows // (2 * self.rounds)
        return max(1, min(round(math.sqrt(n_rows / 2)), drawable))

    def to_yaml(self) -> str:
        """Return the configuration as the YAML that `load_config` reads."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def group_of(name: str) -> str:
    """Return the group of options that a field belongs to."""
    extra = RunConfig.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["group"])


# What a trainer of one's own decides, and what only rounds look at; the model and the judge
# are also those of a quality signal.
TRAINER_FIELDS = frozenset(
    name for name in RunConfig.model_fields if group_of(name) == "Training" and name != "model"
) | {"scorer", "reward_model"}


ROUND_FIELDS = (
    frozenset(
        name
        for name in RunConfig.model_fields
        if group_of(name) == "Scoring" and not name.startswith(("judge_", "serve_"))
    )
    | TRAINER_FIELDS
    | {"rounds", "oversample", "allocation"}
)


def make_config(**options: Any) -> RunConfig:
    """Build a `RunConfig`; what pydantic finds becomes one line.

    Raises
    ------
    ConfigError
        An option is missing, unknown or out of range.
    """
    try:
        return RunConfig(**options)
    except ValidationError as error:
        raise ConfigError("; ".join(explain(problem) for problem in error.errors())) from None


def load_config(path: str | Path) -> dict[str, Any]:
    """Read the options that a YAML file sets.

    Raises
    ------
    ConfigError
        The file cannot be read or is not a YAML mapping.
    """
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file: name one that exists") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}): name a file that can"
        ) from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as a YAML config ({reason}): mend it") from None
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ConfigError(
            f"{path}: holds a {type(options).__name__}, not options: write `name: value` lines"
        )
    for name in options:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: {name!r:.40} is no name of an option: mend or delete it")
    # As on the command line, a hyphen is as good as an underscore.
    return {name.replace("-", "_"): value for name, value in options.items()}
