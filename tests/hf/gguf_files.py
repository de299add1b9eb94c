"""A tiny Llama as a GGUF file, tensors and tokenizer written one by one: what a converter of another project
leaves.
"""

import json

import gguf
import numpy as np
import torch

#: Names in a GGUF file of what transformers calls otherwise, a layer.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def tensors(model):
    """``{name in the file: tensor}`` of a transformers Llama; rotary halves of queries and keys interleaved,
    as there.
    """
    config, state = model.config, {name: t.detach().float() for name, t in model.state_dict().items()}
    found = {f"{there}.weight": state[f"{here}.weight"] for there, here in TOP.items()}
    for i in range(config.num_hidden_layers):
        for there, here in LAYER.items():
            found[f"blk.{i}.{there}.weight"] = state[f"model.layers.{i}.{here}.weight"]
        for part, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            name = f"blk.{i}.{part}.weight"
            halves = found[name].view(heads, 2, -1, config.hidden_size)
            found[name] = halves.transpose(1, 2).reshape(found[name].shape)
    return found


def write(path, model, tokenizer, without=()):
    """Write ``model`` and ``tokenizer`` (a fast byte-level BPE) to ``path``, but for the tensors named in
    ``without``.
    """
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    merges = [" ".join(pair) for pair in merges_of(tokenizer)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, tensor in tensors(model).items():
        if name not in without:
            writer.add_tensor(name, np.ascontiguousarray(tensor.numpy().astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def merges_of(tokenizer):

    found = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in found]


def same_logits(a, b, ids):
    with torch.no_grad():
        return torch.allclose(a(input_ids=ids).logits, b(input_ids=ids).logits, atol=1e-5)
