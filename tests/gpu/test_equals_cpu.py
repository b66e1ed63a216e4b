"""A GPU computes what the CPU and transformers compute: logits, loss and every gradient."""

import pytest
import torch

from mini_llm.model.config import ModelConfig
from mini_llm.model.document_attention import document_attention
from mini_llm.model.transformer import Transformer
from mini_llm.train.head_loss import head_loss
from mini_llm.train.loss import rows_loss_sum

T = 129
# Of the length of the difference over the length: docs/numerics.md. float16 has three bits more than bfloat16.
TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (2e-2, 4e-2), "float16": (4e-3, 1e-2)}


def make_model(**shape: object) -> Transformer:
    values = {"dim": 128, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 700, "max_seq_len": 256}
    model = Transformer(ModelConfig.model_validate({**values, **shape}))
    model.init_weights(seed=1)
    return model


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "shape", [{}, {"qk_norm": True, "n_kv_heads": 4, "tie_embeddings": False}], ids=["gqa", "qk_norm"]
)
def test_logits_loss_and_gradients_equal_the_cpus(device: str, dtype: str, shape: dict) -> None:
    rows = torch.randint(700, (3, T), generator=torch.Generator().manual_seed(0))
    here, there = make_model(**shape), make_model(**shape).to(device)
    low, far = getattr(torch, dtype), TOLERANCE[dtype]
    expected = rows_loss_sum(here, rows, torch.float32)
    found = rows_loss_sum(there, rows.to(device), low)
    assert found.item() == pytest.approx(expected.item(), rel=min(far[0], 2e-3))
    expected.backward()
    found.backward()
    for (name, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        assert distance(q.grad, p.grad) < far[1], name
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=low, enabled=low != torch.float32):
        assert distance(there(rows.to(device)), here(rows)) < far[0]


def test_logits_and_gradients_equal_transformers(device: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = make_model().to(device)
    theirs = LlamaForCausalLM(LlamaConfig(**model.config.to_hf(bos_id=1, eos_id=2, pad_id=None, dtype="float32")))
    theirs.load_state_dict(model.state_dict(), strict=False)
    theirs.to(device)
    ids = torch.randint(700, (2, T), generator=torch.Generator().manual_seed(0)).to(device)
    ours, logits = model(ids[:, :-1]), theirs(input_ids=ids[:, :-1], use_cache=False).logits
    assert distance(ours, logits) < 1e-4
    for scores in (ours, logits):
        torch.nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    gradients = dict(theirs.named_parameters())
    for name, p in model.named_parameters():
        assert distance(p.grad, gradients[name].grad) < 1e-4, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_in_chunks_equals_the_whole(device: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_llm.train.head_loss.CHUNK_BYTES_ELSEWHERE", 100 * 4 * 700)
    monkeypatch.setattr("mini_llm.train.head_loss.CHUNK_BYTES", {"cpu": 100 * 4 * 700})
    random = torch.Generator().manual_seed(0)
    x = torch.randn(333, 64, generator=random).to(device).requires_grad_()
    weight = torch.randn(700, 64, generator=random).to(device).requires_grad_()
    targets = torch.randint(700, (333,), generator=random).to(device)
    loss = head_loss(x, weight, targets, getattr(torch, dtype))[0]
    expected = torch.nn.functional.cross_entropy(x.double() @ weight.double().mT, targets, reduction="sum")
    far = 1e-4 if dtype == "float32" else 2e-2
    assert loss.item() == pytest.approx(expected.item(), rel=far)
    for a, b in zip(torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(expected, (x, weight)), strict=True):
        assert distance(a, b) < far


@pytest.mark.only_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 700, 32000])
def test_the_heads_kernel_gives_what_the_steps_give(dtype: torch.dtype, size: int, monkeypatch) -> None:
    from mini_llm.train import head_loss as head

    monkeypatch.setattr("mini_llm.log.warn", pytest.fail)  # it would say that the kernel does not work
    kernel = head._one_kernel(torch.device("cuda"), dtype)
    assert kernel is not None
    random = torch.Generator().manual_seed(0)
    scores = (torch.randn(301, size, generator=random) * 8).to("cuda", dtype)
    scores[0], scores[1, size // 2] = -3e4, 9e4  # all alike and far below; one that is all that counts
    targets = torch.randint(size, (301, 1), generator=random).cuda()
    losses, gradient = kernel(scores.clone(), targets)
    expected, gradient_in_steps = head._steps(room := scores.clone())(room, targets)
    torch.testing.assert_close(losses, expected[:, 0], rtol=1e-5, atol=4e-3)  # a last bit of 3e4
    torch.testing.assert_close(gradient, gradient_in_steps, rtol=8e-3 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)
    again, gradient_again = kernel(scores.clone(), targets)
    assert torch.equal(losses, again)
    assert torch.equal(gradient, gradient_again)


@pytest.mark.only_cuda
def test_what_is_compiled_and_cudnns_attention_equal_the_cpu(device: str) -> None:
    from mini_llm.device import attention_kernels
    from mini_llm.train.compiled import build_loss_sum

    rows = torch.randint(700, (3, 257), generator=torch.Generator().manual_seed(0)).to(device)
    here, there = make_model(), make_model().to(device)
    expected = rows_loss_sum(here, rows.cpu(), torch.float32)
    expected.backward()
    for deterministic in (True, False):
        with attention_kernels(torch.device(device), deterministic=deterministic):
            loss_sum = build_loss_sum(
                lambda rows: rows_loss_sum(there, rows, torch.bfloat16), there, rows, compile=True
            )
            assert hasattr(loss_sum, "_torchdynamo_orig_callable"), "it was not compiled"
            there.zero_grad()
            loss = loss_sum(rows)
            loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
        for (name, p), q in zip(here.named_parameters(), there.named_parameters(), strict=True):
            assert distance(q[1].grad, p.grad) < 4e-2, name
        torch.compiler.reset()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attention_within_documents_equals_the_cpus(device: str, dtype: str) -> None:
    random, documents = torch.Generator().manual_seed(0), torch.tensor([[0] * 1 + [1] * 63 + [2] * 136, [5] * 200])
    *qkv, grad = (torch.randn(2, heads, 200, 64, generator=random) for heads in (4, 2, 2, 4))

    def result_and_gradients(where: str, low: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(where, low).requires_grad_() for x in qkv]
        out = document_attention(*leaves, documents.to(where))
        return [out, *torch.autograd.grad(out, leaves, grad.to(where, low))]

    found, expected = (result_and_gradients(*how) for how in ((device, getattr(torch, dtype)), ("cpu", torch.float32)))
    for ours, theirs in zip(found, expected, strict=True):
        assert distance(ours, theirs) < TOLERANCE[dtype][1]


@pytest.mark.only_cuda
def test_a_gpu_computes_documents_in_low_precision_without_a_mask(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_mask(_documents: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a mask")

    monkeypatch.setattr("mini_llm.model.document_attention.document_mask", no_mask)
    rows, documents = torch.randint(700, (3, T)), torch.arange(T - 1)[None].expand(3, -1) // 50
    model = make_model(head_dim=64).to(device)
    rows_loss_sum(model, rows.to(device), torch.bfloat16, documents.to(device)).backward()
