"""Every setting of a training run, with the names of the seed and of nanoGPT; `model:` holds the shape."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from mini_llm.config import Config, PathText, expand_path
from mini_llm.data.store_shares import DataDir, StoreShare, shares_of
from mini_llm.hub import is_hub_name
from mini_llm.model.config import MOST_DIM, ModelConfig
from mini_llm.train.parallel.settings import ParallelConfig

# No run of this decade comes near these; a number above is a slip, and would end in a hang or without memory.
MOST_STEPS = 10**9
MOST_ROWS = 2**20
MOST_TOKENS = 2**28  # of one step
MOST_RATE = 1e3
MOST_MINUTES = 1e7
MOST_NAMES = 1000  # of tasks


def _expand_model(text: str) -> str:
    return text if is_hub_name(text) else expand_path(text)


def _expand_data(text: str) -> str:
    """Expand the path of a folder, or of TASK=FILE."""
    task, sign, file = text.partition("=")
    return task + sign + expand_path(file) if sign else expand_path(text)


Word = Annotated[str, Field(max_length=1000)]
ModelText = Annotated[str, AfterValidator(_expand_model)]  # a folder, or a name on the hub
DataText = Annotated[str, AfterValidator(_expand_data)]


class MixConfig(Config):
    """Conversations in pretraining's cool-down or beside rl's answers, the section `mix:`; see tune/midtraining.py."""

    data: tuple[PathText, ...] = ()  # files, folders or globs, as for `mini-llm sft`
    share: float = Field(default=0.05, gt=0, le=0.5)  # of the rows of each step of the cool-down; rl: of answers' room

    @field_validator("data", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_of_something(self) -> MixConfig:
        if not self.data and self.share != type(self).model_fields["share"].default:
            raise ValueError("a share of nothing: name the conversations, mix.data=FILES")
        return self


class TrainConfig(Config):
    """What `mini-llm train --config FILE KEY=VALUE ...` reads."""

    verb: ClassVar[str] = "train"  # whose settings these are: only it goes on with a run that they made

    # Files
    data_dir: DataDir = "data/tokens"  # token store, from `mini-llm prepare`; several: [{path: DIR, weight: 3}, ...]
    out_dir: PathText = "runs/default"  # run folder: config.yaml, metrics.jsonl, checkpoints/
    resume: bool = True  # go on from the last checkpoint in out_dir

    # The batch: a step sees batch_size * gradient_accumulation_steps rows of block_size tokens
    batch_size: int = Field(16, ge=1, le=MOST_ROWS)  # rows in memory at once
    block_size: int = Field(512, ge=1, le=MOST_TOKENS)  # tokens in a row
    gradient_accumulation_steps: int = Field(1, ge=1, le=MOST_ROWS)  # micro-batches whose gradients are summed
    auto_batch: bool = False  # out of memory: half the batch_size, twice the accumulation, and try again
    max_iters: int = Field(10000, ge=1, le=MOST_STEPS)  # steps in all
    max_minutes: float | None = Field(None, gt=0, le=MOST_MINUTES)  # stop with a checkpoint; the same command goes on
    fit_minutes: bool = (
        False  # max_minutes is a budget: at most max_iters steps, cut so that the schedule ends within it
    )
    seed: int = Field(1337, ge=0, lt=2**32)  # weights, batches and dropout
    length_warmup: float = Field(0.0, ge=0, lt=1)  # share of max_iters with rows of block_size/4, then block_size/2
    align_documents: bool = False  # rows begin where documents begin; no token is lost
    document_attention: bool = False  # no token sees another document of its row
    soft_targets: float = Field(0.0, ge=0, le=1)  # part of each target for what followed the same tokens elsewhere
    soft_fade_tokens: int = Field(1_000_000, ge=1, le=10**15)  # of training, until that part has faded to nothing
    soft_tokens: int = Field(10_000_000, ge=1, le=10**10)  # of the training text, counted for it: 16 bytes each

    # Optimizer
    init_from: ModelText | None = None  # start from this folder, run or hf://USER/NAME: its shape and weights
    init: Literal["normal", "bigram"] = "normal"  # bigram: embedding and head start from counted pairs of tokens
    init_tokens: int = Field(20_000_000, ge=1, le=10**12)  # of the training text, counted: more would change little
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: Muon for matrices, AdamW for embeddings and norms
    learning_rate: float = Field(6e-4, ge=0, le=MOST_RATE)  # AdamW's peak
    embedding_rate_scale: float = Field(1.0, ge=0, le=MOST_RATE)  # the embedding's rate, as a part of learning_rate
    head_rate_scale: float = Field(1.0, ge=0, le=MOST_RATE)  # and the head's, where it is not the embedding again
    base_dim: int | None = Field(None, ge=1, le=MOST_DIM)  # model.dim that learning_rate was tuned at; unset: model.dim
    muon_learning_rate: float = Field(0.02, ge=0, le=MOST_RATE)  # Muon's peak; follows the same schedule
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    min_lr: float = Field(6e-5, ge=0, le=MOST_RATE)  # where the schedule of learning_rate ends
    lr_schedule: Literal["cosine", "wsd"] = "cosine"  # wsd: warm-up, stable, linear cool-down
    warmup_iters: int = Field(200, ge=0, le=MOST_STEPS)
    lr_decay_iters: int | None = Field(None, ge=1, le=MOST_STEPS)  # step at which min_lr is reached; unset: max_iters
    cooldown_fraction: float = Field(0.4, gt=0, le=1)  # wsd: share of lr_decay_iters spent cooling down
    weight_decay: float = Field(0.1, ge=0, le=MOST_RATE)
    cautious_decay: bool = False  # Muon's matrices: only weights that the step moves towards zero decay
    weight_average: float = Field(0.0, ge=0, lt=1)  # share that the average keeps in a step; 0: the last weights count
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    grad_clip: float = Field(1.0, ge=0, le=1e9)  # longest gradient; 0: never shortened
    skip_spikes: float | None = Field(None, gt=0, le=1e6)  # skip a batch so many standard deviations above the mean

    # Machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products; weights stay float32
    deterministic: bool = True  # the same bits every time; false may be faster on a GPU
    compile: bool = True  # torch.compile; goes on without where it cannot run

    # Looking and saving
    log_interval: int = Field(10, ge=1, le=MOST_STEPS)  # steps between lines of metrics.jsonl
    eval_interval: int = Field(500, ge=1, le=MOST_STEPS)  # steps between evaluations on held-out text
    eval_iters: int = Field(50, ge=1, le=MOST_STEPS)  # batches of an evaluation, always the same ones
    save_interval: int = Field(500, ge=1, le=MOST_STEPS)  # steps between checkpoints; one is always written at the end
    save_minutes: float | None = Field(15, gt=0, le=MOST_MINUTES)  # and so long after another; unset: steps alone
    async_save: bool = True  # write while training goes on; takes host memory for one more copy of the state
    keep_last: int = Field(3, ge=1, le=10**6)  # newest checkpoints that stay; the best one stays too
    always_save_checkpoint: bool = False  # also keep a checkpoint of every evaluation, not only of the best
    milestones: bool = False  # keep bfloat16 weights of steps 1, 2, 4, 8 ...: the last ten, 20 bytes a parameter
    eval_tasks: list[Word] = Field(
        [], max_length=MOST_NAMES
    )  # tasks of `mini-llm eval` to ask meanwhile, such as [blimp, lambada, piqa, arc_easy]
    eval_tasks_interval: int | None = Field(None, ge=1, le=MOST_STEPS)  # steps between; unset: eval_interval
    eval_tasks_items: int = Field(500, ge=1, le=MOST_STEPS)  # of each task, drawn by the seed: always the same ones
    # Folders that hold the sets, as for `mini-llm eval --data`; unset: the hub
    eval_tasks_data: list[DataText] = Field([], max_length=MOST_NAMES)
    sample_interval: int | None = Field(None, ge=1, le=MOST_STEPS)  # steps between samples of what the model writes
    sample_prompt: str = ""  # what they go on from
    profile: bool = False  # trace a few steps into RUN/profile and show where their time goes
    tensorboard: bool = False  # write RUN/tensorboard
    wandb_log: bool = False
    wandb_project: str = "mini-llm"
    wandb_run_name: str | None = None

    mix: MixConfig = MixConfig()  # conversations among the text, in the cool-down
    parallel: ParallelConfig = ParallelConfig()  # with `torchrun`: how the work is spread over its processes
    model: ModelConfig = ModelConfig()

    @field_validator("eval_tasks", "eval_tasks_data", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _take_shape(cls, values: Any) -> Any:
        if not (isinstance(values, dict) and values.get("init_from")):
            return values
        from mini_llm.train.init_from import with_its_shape  # it reads a folder: not for runs that begin anew

        return {**values, "model": with_its_shape(_expand_model(str(values["init_from"])), values.get("model"))}

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.init_from and self.init != "normal":
            raise ValueError(f"init={self.init} would overwrite weights of init_from={self.init_from}: leave one out")
        if self.block_size > self.model.max_seq_len:
            raise ValueError(f"block_size={self.block_size} is above model.max_seq_len={self.model.max_seq_len}")
        if self.tokens_per_step > MOST_TOKENS:
            raise ValueError(
                f"batch_size={self.batch_size} * gradient_accumulation_steps={self.gradient_accumulation_steps} * "
                f"block_size={self.block_size} are {self.tokens_per_step:,} tokens a step, {MOST_TOKENS:,} at most"
            )
        if self.min_lr > self.learning_rate:
            raise ValueError(f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}")
        if self.head_rate_scale != 1 and self.model.tie_embeddings:
            raise ValueError("head_rate_scale needs a head of its own: model.tie_embeddings=false")
        if self.init == "bigram" and self.model.tie_embeddings:
            raise ValueError("init=bigram needs a head of its own: model.tie_embeddings=false")
        if self.length_warmup and self.block_size % 4:
            raise ValueError(f"length_warmup cuts rows into quarters: block_size={self.block_size} must divide by 4")
        if self.fit_minutes and (self.max_minutes is None or self.lr_decay_iters is not None or self.length_warmup):
            raise ValueError("fit_minutes needs max_minutes, lr_decay_iters unset and length_warmup=0")
        if self.soft_targets and (self.align_documents or self.document_attention or len(self.stores) > 1):
            raise ValueError(
                "soft_targets counts plain rows of one store: no align_documents, no document_attention, one data_dir"
            )
        if self.soft_targets and self.parallel.tensor > 1:
            raise ValueError("soft_targets needs every process to have all scores: parallel.tensor=1")
        if self.mix.data:
            self._check_mix()
        if self.fit_minutes and not 2 <= self.warmup_iters < self.max_iters:
            raise ValueError(
                f"fit_minutes measures the steps of the warm-up: warmup_iters={self.warmup_iters} must be 2 or more, "
                f"and below max_iters={self.max_iters}"
            )
        return self

    def _check_mix(self) -> None:
        if self.lr_schedule != "wsd" or self.fit_minutes:
            raise ValueError(
                "mix goes into the cool-down, which must be known from the first: lr_schedule=wsd, no fit_minutes"
            )
        if self.length_warmup + self.cooldown_fraction > 1:
            raise ValueError("mix needs whole rows: length_warmup and cooldown_fraction together are 1 at most")

    @property
    def stores(self) -> list[StoreShare]:
        """The token stores of `data_dir` with their weights; mostly one."""
        return shares_of(self.data_dir)

    @property
    def data_names(self) -> str:
        """Their paths, for a person."""
        return ", ".join(share.path for share in self.stores)

    @property
    def probe_interval(self) -> int:
        """Steps between evaluations of tasks."""
        return self.eval_tasks_interval or self.eval_interval

    @property
    def rows_per_step(self) -> int:
        """Rows whose gradients make one step."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of one step."""
        return self.rows_per_step * self.block_size

    @property
    def step_size(self) -> str:
        """What a step sees, for a person."""
        return f"{self.tokens_per_step:,} tokens a step"

    def micro_batches(self, n_rows: int) -> int:
        """Return in how many parts the rows of a step are computed."""
        return self.gradient_accumulation_steps

    def is_whole(self, step: int) -> bool:
        """Tell whether a run can be stopped and gone on with after `step` steps."""
        return True
