#!/usr/bin/env bash
# A GGUF file whose tensors are all float32 loads as a "quantized" model: its parameters are plain float32, and
# save_pretrained refuses it as "quantized with gguf and not serializable".
#
# One would guess that quantization is a property of the numbers, and that a file without quantized numbers gives
# a plain model, as it did before transformers had GgufConfig. But every file that is loaded by gguf_file= gets
# that config unless another is given. Tools that look at is_quantized or config.quantization_config (trainers
# that refuse to train quantized weights, peft, exporters) then treat plain weights as quantized ones.
#
# What helps: quantization_config=GgufConfig(dequantize=True), which leaves a plain model and a plain config.
#
# Seen with Python 3.11, torch 2.13.0, transformers 5.24.0, gguf 0.19.0, accelerate 1.15.0, CPU, 2026-11-30:
#   gguf_file alone: parameters float32, is_quantized True, save_pretrained ValueError
#   GgufConfig(dequantize=True): parameters float32, is_quantized False, save_pretrained works
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import gguf
import numpy as np
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
rng = np.random.default_rng(0)
writer = gguf.GGUFWriter("model.gguf", "llama")
writer.add_block_count(1)
writer.add_context_length(64)
writer.add_embedding_length(32)
writer.add_feed_forward_length(48)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_rope_freq_base(10000.0)
writer.add_vocab_size(64)
SHAPES = {
    "token_embd": (64, 32), "output_norm": (32,), "output": (64, 32), "blk.0.attn_norm": (32,), "blk.0.attn_q": (32, 32),
    "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32), "blk.0.ffn_norm": (32,),
    "blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32), "blk.0.ffn_down": (32, 48),
}
for name, shape in SHAPES.items():
    writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def outcome(**options):
    model = transformers.AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", **options)
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
    try:
        model.save_pretrained("saved")
        saved = "works"
    except ValueError:
        saved = "ValueError"
    return f"parameters {dtypes}, is_quantized {bool(getattr(model, 'is_quantized', False))}, save_pretrained {saved}"


plain, asked = outcome(), outcome(quantization_config=transformers.GgufConfig(dequantize=True))
print(f"gguf_file alone: {plain}")
print(f"GgufConfig(dequantize=True): {asked}")
same = plain == "parameters float32, is_quantized True, save_pretrained ValueError"
same = same and asked == "parameters float32, is_quantized False, save_pretrained works"
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
