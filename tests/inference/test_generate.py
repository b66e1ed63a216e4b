"""Generation: greedy is argmax and transformers, cached is uncached, a batch is its rows, a seed decides."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.errors import UsageError, UserError
from mini_llm.inference.backends.compiled import quantize
from mini_llm.inference.engine.request import Request
from mini_llm.inference.generate import Generator
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer

MakeModel = Callable[..., Path]
GREEDY = SamplingParams(temperature=0)
PROMPTS = ["", "The President", "We the people of the United States, ", "naïve 😀\n\tcafé", "x"]


def new_ids(generator: Generator, prompt: str, n: int, sampling: SamplingParams, seed: int | None = None) -> list[int]:
    ids = generator.encode_prompt(prompt)
    return list(generator.engine.submit(Request(prompt_ids=ids, max_new_tokens=n, sampling=sampling, seed=seed)))


def greedy_ids(generator: Generator, prompt: str, n: int = 24) -> list[int]:
    return new_ids(generator, prompt, n, GREEDY)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_the_argmax_of_the_uncached_model_at_every_step(generator: Generator, prompt: str) -> None:
    ids = generator.encode_prompt(prompt)
    for token_id in greedy_ids(generator, prompt):
        assert token_id == int(generator.model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token_id)


def no_bytes(model: Transformer) -> None:
    """Make special tokens and bytes (ids up to 263) score 0: no end, and no half characters."""
    model.lm_head.weight[:264] = 0


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_kv_heads": 4, "tie_embeddings": False, "edit": no_bytes},
        {"qk_norm": True, "head_dim": 16, "tie_embeddings": False, "edit": no_bytes},
    ],
    ids=["llama", "untied", "qwen3"],
)
def test_greedy_text_equals_transformers(make_model: MakeModel, shape: dict[str, object]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make_model(seed=5, max_seq_len=512, **shape)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = Generator(folder, device="cpu", dtype="float32")
    for prompt in PROMPTS[1:]:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, max_new_tokens=256, do_sample=False)[0]
        assert ours.encode_prompt(prompt) + greedy_ids(ours, prompt, n=256) == output.tolist()
        assert len(output) == inputs["input_ids"].shape[1] + 256, "no token has ended it"
        if "edit" in shape:  # transformers decodes half characters in another way
            expected = tokenizer.decode(output, skip_special_tokens=True)
            assert ours.generate(prompt, max_new_tokens=256, temperature=0) == expected


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0, 2), prompt=st.sampled_from(PROMPTS))
def test_streamed_pieces_are_whole_characters_and_make_the_text(
    generator: Generator, seed: int, temperature: float, prompt: str
) -> None:
    options = {"max_new_tokens": 40, "temperature": temperature, "seed": seed}
    pieces = list(generator.stream(prompt, **options))
    ids = new_ids(generator, prompt, 40, SamplingParams(temperature=temperature, top_p=0.9), seed)
    assert "".join(pieces) == generator.tokenizer.decode(ids)
    assert all(piece.encode("utf-8") for piece in pieces)
    assert generator.generate(prompt, **options) == prompt + "".join(pieces)


def test_a_batch_equals_its_rows_one_by_one(generator: Generator) -> None:
    together = generator.generate_batch(PROMPTS, max_new_tokens=30, sampling=GREEDY)
    assert together == [generator.generate(prompt, max_new_tokens=30, temperature=0) for prompt in PROMPTS]


def test_a_batch_gives_each_row_its_own_end(make_model: MakeModel) -> None:
    generator = Generator(make_model(max_seq_len=40), device="cpu")
    prompts = ["a" * 25, "b"]
    together = generator.generate_batch(prompts, max_new_tokens=30, sampling=GREEDY, stop=["e"])
    assert together == [generator.generate(p, max_new_tokens=30, temperature=0, stop="e") for p in prompts]
    for prompt in prompts:
        assert len(generator.encode_prompt(prompt)) + len(greedy_ids(generator, prompt, n=99)) == 40


def busy(generator: Generator) -> int:
    """Return how many texts are computed or wait."""
    generator.engine.step()
    return len(generator.engine._waiting) + sum(slot.job is not None for slot in generator.engine.slots)


def test_what_nobody_reads_is_not_computed(endless: Path) -> None:
    generator = Generator(endless, device="cpu")
    gc.disable()  # the collector may come too late
    try:
        for seed in range(3):
            for _ in generator.stream("The", max_new_tokens=10_000, seed=seed):
                break
        assert busy(generator) == 0
        stopped = generator.stream("The", max_new_tokens=10_000, temperature=0, stop="e")
        list(stopped)
        assert busy(generator) == 0
        assert stopped.ids._job.ended == "cancelled"
        assert len(stopped.ids._job.written) == stopped.n_tokens
    finally:
        gc.enable()


def test_of_a_batch_that_is_refused_nothing_is_computed(make_model: MakeModel) -> None:
    generator = Generator(make_model(max_seq_len=24), device="cpu")
    with pytest.raises(UserError, match="context is 24") as caught:
        generator.generate_batch(["x", "y", "x" * 40], max_new_tokens=9, sampling=GREEDY)
    assert busy(generator) == 0
    assert caught.value  # held: its traceback holds what the call held


def test_eos_may_be_ignored(make_model: MakeModel, small_tokenizer: Tokenizer) -> None:
    eos_id, letter = small_tokenizer.special_id("</s>"), small_tokenizer.encode("z")[-1]
    generator = Generator(make_model(tie_embeddings=False, edit=always(eos_id, after=letter)), device="cpu")
    for ignore_eos, expected in ((True, (20, "length")), (False, (2, "stop"))):
        ids = generator.encode_prompt("a")
        text = generator.continue_ids(ids, max_new_tokens=20, sampling=GREEDY, ignore_eos=ignore_eos)
        assert set("".join(text)) <= {"z"}
        assert (text.n_tokens, text.finish_reason) == expected


def test_an_empty_batch_is_empty(generator: Generator) -> None:
    assert generator.generate_batch([], max_new_tokens=5, sampling=GREEDY) == []


def test_the_same_seed_writes_the_same_text(generator: Generator) -> None:
    first, again, other = (generator.generate("The", temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    batches = [
        generator.generate_batch(["The", "We the"], max_new_tokens=20, sampling=SamplingParams(), seed=3)
        for _ in range(2)
    ]
    assert batches[0] == batches[1]


def test_without_a_seed_texts_differ(generator: Generator) -> None:
    torch.manual_seed(0)
    first = generator.generate("The", temperature=1.0)
    torch.manual_seed(0)
    assert first != generator.generate("The", temperature=1.0)


def test_a_text_of_a_batch_is_the_one_it_would_be_alone(generator: Generator) -> None:
    sampling = SamplingParams(temperature=1.0)
    batch = generator.generate_batch(["The", "The", "We the"], max_new_tokens=20, sampling=sampling, seed=3)
    alone = [generator.generate(p, 20, 1.0, 0.95, seed=3 + n) for n, p in enumerate(["The", "The", "We the"])]
    assert batch == alone
    assert batch[0] != batch[1]


@pytest.mark.needs_compiler
def test_int8_without_a_compiler_has_the_same_weights(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model()
    compiled = Generator(folder, device="cpu", dtype="int8")
    monkeypatch.setenv("CC", "no-such-compiler")
    eager = Generator(folder, device="cpu", dtype="int8")
    assert (compiled.engine.backend.name, eager.engine.backend.name) == ("compiled", "eager")
    assert "plain PyTorch, slower: no C compiler" in capsys.readouterr().err
    for plain, rounded in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        if plain.ndim == 2:
            int8, scale = quantize(plain)
            assert torch.equal(int8 * scale[:, None], rounded)
    assert compiled.generate("The", 5, 0) == eager.generate("The", 5, 0)
    with pytest.raises(UserError, match="no C compiler"):
        Generator(folder, device="cpu", backend="compiled")


def test_log_probabilities_come_with_the_text(generator: Generator) -> None:
    text = generator.stream("The", 5, 0, logprobs=2)
    list(text)
    assert [entry.token_id == entry.likeliest[0][0] for entry in text.ids.logprobs] == [True] * 5


def test_a_sliding_context_writes_on(make_model: MakeModel) -> None:
    generator = Generator(make_model(max_seq_len=24), device="cpu")
    stream = generator.stream("x" * 40, max_new_tokens=60, seed=1, context_overflow="slide")
    list(stream)
    assert (stream.n_tokens, stream.finish_reason) == (60, "length")


def test_a_streams_tokens_are_not_changed_by_another_stream(generator: Generator) -> None:
    alone = list(generator.stream("The", temperature=1.0, seed=1))
    with_other = list(
        zip(generator.stream("The", temperature=1.0, seed=1), generator.stream("We", temperature=1.0), strict=False)
    )
    assert [piece for piece, _ in with_other] == alone[: len(with_other)]


def test_the_repetition_penalty_counts_prompt_and_text(generator: Generator) -> None:
    prompt = "The President"
    ids = generator.encode_prompt(prompt)
    sampling = SamplingParams(temperature=0, repetition_penalty=1e6)  # a seen token is never the best again
    new = new_ids(generator, prompt, 50, sampling)
    assert len(set(new)) == len(new)
    assert not set(new) & set(ids)


def test_max_new_tokens_and_reason(generator: Generator) -> None:
    stream = generator.stream("The", max_new_tokens=7, temperature=0)
    list(stream)
    assert (stream.n_tokens, stream.finish_reason) == (7, "length")


def test_the_context_is_filled_to_its_last_token(make_model: MakeModel) -> None:
    generator = Generator(make_model(max_seq_len=24), device="cpu")
    prompt_ids = generator.encode_prompt("The President")
    stream = generator.stream("The President", max_new_tokens=1000, temperature=0)
    list(stream)
    assert (stream.n_tokens, stream.finish_reason) == (24 - len(prompt_ids), "context")
    full = "x" * 40
    n_tokens = len(generator.encode_prompt(full))
    with pytest.raises(UserError, match=f"prompt has {n_tokens} tokens and the model's context is 24"):
        generator.stream(full)
    with pytest.raises(UserError, match="context is 24"):
        generator.generate_batch(["x", full], max_new_tokens=1, sampling=GREEDY)


def always(token_id: int, after: int) -> Callable[[Transformer], None]:
    """Return an edit of a model by which `token_id` follows `after`, and `after` everything else."""

    def edit(model: Transformer) -> None:
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # blocks add nothing: the next token depends on the last one alone
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.zero_()[:, 0] = 1
        embedding[after] = torch.eye(embedding.shape[1])[1]
        head.zero_()[after, 0], head[token_id, 1] = 9, 9
        model.model.norm.weight.fill_(1)

    return edit


@pytest.mark.parametrize("name", ["</s>", "<|end|>"])
def test_every_eos_ends_the_text(make_model: MakeModel, small_tokenizer: Tokenizer, name: str) -> None:
    eos_id, letter = small_tokenizer.special_id(name), small_tokenizer.encode("z")[-1]
    generator = Generator(make_model(tie_embeddings=False, edit=always(eos_id, after=letter)), device="cpu")
    stream = generator.stream("a", temperature=0)
    assert ("".join(stream), stream.finish_reason, stream.n_tokens) == ("z", "stop", 2)
    assert generator.generate_batch(["a", "aaaa"], max_new_tokens=9, sampling=GREEDY) == ["az", "aaaaz"]


def test_eos_ids_of_generation_config_count(make_model: MakeModel, small_tokenizer: Tokenizer) -> None:
    letter, other = small_tokenizer.encode("z")[-1], small_tokenizer.encode("q")[-1]
    folder = make_model(tie_embeddings=False, edit=always(other, after=letter))
    (folder / "checksums.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, other]}))
    assert Generator(folder, device="cpu").generate("a", temperature=0) == "az"
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"generation_config\.json is damaged"):
        Generator(folder, device="cpu")


def test_eos_ids_of_config_count_too(make_model: MakeModel, small_tokenizer: Tokenizer) -> None:
    letter, other = small_tokenizer.encode("z")[-1], small_tokenizer.encode("q")[-1]
    folder = make_model(tie_embeddings=False, edit=always(other, after=letter))
    (folder / "checksums.json").unlink()
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [2, other]}))
    assert Generator(folder, device="cpu").generate("a", temperature=0) == "az"


@settings(deadline=None, max_examples=20)
@given(texts=st.lists(st.text("abc ", max_size=30), min_size=1, max_size=4))
def test_what_was_read_before_changes_no_answer(generator: Generator, make_model: MakeModel, texts: list[str]) -> None:
    fresh = Generator(generator.folder, device="cpu")
    assert [greedy_ids(generator, text, n=10) for text in texts] == [greedy_ids(fresh, text, n=10) for text in texts]


def test_an_id_beyond_the_tokenizer_is_never_chosen(make_model: MakeModel) -> None:
    def favour_unknown(model: Transformer) -> None:
        model.lm_head.weight[400:] *= 50

    generator = Generator(make_model(vocab_size=512, tie_embeddings=False, edit=favour_unknown), device="cpu")
    ids = generator.encode_prompt("The")
    assert int(generator.model(torch.tensor([ids]))[0, -1].argmax()) >= 400
    assert all(token_id < 400 for token_id in greedy_ids(generator, "The"))


@pytest.mark.parametrize(
    "stored", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.needs_compiler), torch.float16]
)
def test_auto_dtype_is_the_stored_one_where_the_hardware_has_it(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype
) -> None:  # fmt: skip
    folder = make_model(dtype=stored)
    for has_fast_bfloat16, backend in ((True, "eager"), (False, "eager"), (False, "auto")):
        monkeypatch.setattr("mini_llm.inference.generate.has_fast_bfloat16", lambda _, answer=has_fast_bfloat16: answer)
        kept = stored == torch.bfloat16 and (has_fast_bfloat16 or backend == "auto")  # step.c reads bfloat16 on any CPU
        generator = Generator(folder, device="cpu", backend=backend)
        assert generator.model.lm_head.weight.dtype == (stored if kept else torch.float32)
    assert Generator(folder, device="cpu", dtype="bfloat16").model.lm_head.weight.dtype == torch.bfloat16


def test_the_seeds_interface(folder: Path, small_tokenizer: Tokenizer) -> None:
    generator = Generator(checkpoint_path=str(folder), tokenizer_path=str(small_tokenizer.folder), device="cpu")
    text = generator.generate("Hello", max_new_tokens=5, temperature=0.7, top_p=0.9)
    assert text.startswith("Hello")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_k": -5}, "top_k=-5"),
        ({"stop": [""]}, "stop string must not be empty"),
    ],
)
def test_numbers_out_of_range_are_refused_before_any_text(
    generator: Generator, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        generator.stream("The", **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_weights_are_named(make_model: MakeModel, bad: float) -> None:
    folder = make_model(edit=lambda model: model.model.norm.weight.fill_(bad))
    generator = Generator(folder, device="cpu")
    for temperature in (0, 1):
        with pytest.raises(UserError, match="NaN or infinite") as caught:
            generator.generate("The", temperature=temperature)
        assert str(folder) in caught.value.message


def test_an_empty_prompt_without_bos_is_explained(folder: Path) -> None:
    generator = Generator(folder, device="cpu")
    generator.tokenizer.prefix_ids, generator.tokenizer.bos_id = [], None
    assert generator.encode_prompt("") == [generator.tokenizer.eos_id]
    generator.tokenizer.eos_id = None
    with pytest.raises(UserError, match="prompt is empty"):
        generator.encode_prompt("")


def test_a_folder_that_cannot_be_used_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Generator(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no model in"):
        Generator(tmp_path)
    with pytest.raises(UsageError, match="not one of auto, cpu"):
        Generator(make_model(), device="abacus")
    with pytest.raises(UsageError, match="not available here"):
        Generator(make_model(), device="cuda:99")
    with pytest.raises(UsageError, match="dtype 'int4'"):
        Generator(make_model(), dtype="int4")
    with pytest.raises(UsageError, match="backend 'abacus'"):
        Generator(make_model(), backend="abacus")
    with pytest.raises(UsageError, match="compiled backend takes float32, bfloat16 or int8 on a CPU, not float16"):
        Generator(make_model(), device="cpu", dtype="float16", backend="compiled")
    with pytest.raises(UserError, match="no tokenizer folder"):
        Generator(make_model(), tokenizer_path=tmp_path / "nowhere")


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "text"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_is_named(make_model: MakeModel, name: str, damage: str, checksums: bool) -> None:
    folder = make_model()
    data = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
        (folder / "tokenizer.model").unlink(missing_ok=True)  # which would do instead
    else:
        (folder / name).write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage])
    if not checksums:
        (folder / "checksums.json").unlink()
    with pytest.raises(UserError) as caught:
        Generator(folder, device="cpu")
    assert name in caught.value.message or (name == "config.json" and damage == "missing")


def test_a_tokenizer_larger_than_the_model_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(UserError, match=r"has 400 tokens, the model in .* knows 300"):
        Generator(make_model(vocab_size=300), device="cpu")


def test_a_folder_written_by_transformers_generates_the_same_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **shape, num_key_value_heads=2, vocab_size=257, eos_token_id=256, bos_token_id=256, initializer_range=0.3
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)

    ours = Generator(tmp_path, device="cpu", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = ours.encode_prompt("Once upon a time")
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0].tolist()
    assert ids + greedy_ids(ours, "Once upon a time", n=64) == expected
    assert ours.encode_prompt("") == [256], "no BOS of its own: it starts from the end of a text"
