"""Tiny models with random weights, a batch, and a pass over it, for the tests of the chunked loss."""

import torch
import transformers

V = 67
#: In roundings (eps), relative to a gradient's largest element: chunked and unchunked head differ in the
#: order of sums over at most V = max(V, N) terms, V eps, and each of the two layers below carries that on and
#: adds as much of its own. Measured, six models, two dtypes: 0.5 to 12 eps.
TOLERANCE = 3 * V
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
KINDS = {
    "GPT2": GPT2,
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Gemma": SIZES,
    "Mixtral": {
        **SIZES,
        "num_local_experts": 4,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.1,
        "experts_implementation": "eager",
    },
    "Phi": (
        {name: SIZES[name] for name in SIZES if name != "head_dim"}
        | {"num_key_value_heads": 2, "resid_pdrop": 0.0}
    ),  # a head with a bias
}


def build(kind="Llama", dtype=torch.float32, vocab=V, **extra):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocab,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **{**KINDS[kind], **extra},
    )
    return (
        getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
        .to(dtype)
        .train()
    )


def batch(rows=2, time=9, vocab=V):
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, vocab, (rows, time), generator=g)
    y = torch.where(torch.rand(rows, time, generator=g) < 0.3, -100, x)
    return {"input_ids": x, "labels": y}


def run(model, **inputs):
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
