#!/usr/bin/env python3
"""Writes fuzz/seeds/gguf: one small GGUF file of each kind, behind a byte of flags (see fuzz_targets/gguf.rs).

    python3 fuzz/make_gguf_seeds.py        (needs numpy)
"""
import os
import sys
import tempfile

import numpy as np

here = os.path.dirname(os.path.abspath(__file__))
tests = os.path.join(here, "../crates/bitnet-model/tests")
sys.path.insert(0, os.path.join(tests, "oracle-gguf/generator"))
import container as c
import pack

OUT = os.path.join(here, "seeds/gguf")
LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def file(arch, kind, width, table="F16", spm=False, scale_tensors=False, norms_in=False):
    rng = np.random.default_rng(7)
    vocab, heads = 24, width // 16
    key = lambda name: f"{arch}.{name}"
    kv = {
        "general.architecture": (c.STR, arch), key("block_count"): (c.U32, 1), key("context_length"): (c.U32, 64),
        key("embedding_length"): (c.U32, width), key("feed_forward_length"): (c.U32, width), key("attention.head_count"): (c.U32, heads),
        key("attention.head_count_kv"): (c.U32, 1), key("attention.key_length"): (c.U32, 16), key("attention.value_length"): (c.U32, 16),
        key("attention.layer_norm_rms_epsilon"): (c.F32, 1e-5), key("rope.freq_base"): (c.F32, 1e4),
    }
    if spm:
        tokens = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(10, 20)] + ["\u2581", "a", "b", "ab", "\u2581a", "\u2581ab", "c", "d", "cd", "<pad>", "e"]
        kinds = [2, 3, 3] + [6] * 10 + [1] * 9 + [3, 1]
        kv |= {"tokenizer.ggml.model": (c.STR, "llama"), "tokenizer.ggml.scores": (c.ARR, (c.F32, [-float(i) for i in range(vocab)]))}
    else:
        tokens = ["a", "b", "c", "d", "e", "l", "o", "\u0120", "ab", "\u0120a", "cd", "lo"] + [str(i) for i in range(10)] + ["<|eot_id|>", "<|begin_of_text|>"]
        kinds = [1] * 22 + [3, 3]
        kv |= {"tokenizer.ggml.model": (c.STR, "gpt2"), "tokenizer.ggml.pre": (c.STR, "llama-bpe"),
               "tokenizer.ggml.merges": (c.ARR, (c.STR, ["a b", "\u0120 a", "c d", "l o"]))}
    kv |= {"tokenizer.ggml.tokens": (c.ARR, (c.STR, tokens)), "tokenizer.ggml.token_type": (c.ARR, (c.I32, kinds)),
           "tokenizer.ggml.bos_token_id": (c.U32, 1 if spm else 23), "tokenizer.ggml.eos_token_id": (c.U32, 2 if spm else 22),
           "tokenizer.chat_template": (c.STR, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eot_id|>{% endfor %}")}
    assert len(tokens) == len(kinds) == vocab
    floats = lambda n: (rng.standard_normal(n) * 0.02 + 1).astype("<f4").tobytes()
    block, size = {"F16": (1, 2), "Q4_0": (32, 18), "IQ4_NL": (32, 18), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)}[table]
    data = (rng.standard_normal((vocab, width)) * 0.05).astype("<f2").tobytes() if table == "F16" else bytes(vocab * width // block * size)
    tensors = [c.Tensor("token_embd.weight", [width, vocab], c.NUMBER[table], data)]
    bitnet = arch.startswith("bitnet")
    for name in ("attn_norm", "ffn_norm") + (("attn_sub_norm", "ffn_sub_norm") if bitnet else ()) + (("attn_q_norm", "attn_k_norm") if norms_in else ()):
        n = 16 if name in ("attn_q_norm", "attn_k_norm") else width
        tensors.append(c.Tensor(f"blk.0.{name}.weight", [n], 0, floats(n)))
    for name in LINEAR:
        rows = 16 if name in ("attn_k", "attn_v") else width
        t = rng.integers(-1, 2, (rows, width)).astype(np.int8)
        if kind == "F16":
            data = (t * np.float32(0.5)).astype("<f2").tobytes()
        else:
            data = pack.ENCODE[kind](t, np.float32(1 if scale_tensors else 0.5))
        tensors.append(c.Tensor(f"blk.0.{name}.weight", [width, rows], c.NUMBER[kind], data))
        if scale_tensors:
            tensors.append(c.Tensor(f"blk.0.{name}.scale", [1], 0, np.array([0.5], "<f4").tobytes()))
        if norms_in:
            tensors.append(c.Tensor(f"blk.0.{name}_norm_in.weight", [width], 0, floats(width)))
    tensors.append(c.Tensor("output_norm.weight", [width], 0, floats(width)))
    return kv, tensors


def main():
    os.makedirs(OUT, exist_ok=True)
    seeds = {
        "i2s": (0, file("bitnet-b1.58", "I2_S", 32)), "i2s-arm": (1, file("bitnet-b1.58", "I2_S", 32)), "i2s-rows4": (2, file("llama", "I2_S", 32)),
        "i2s-spm": (0, file("bitnet", "I2_S", 32, spm=True)), "tq2": (0, file("llama", "TQ2_0", 256, "Q6_K")), "tq1": (0, file("llama", "TQ1_0", 256, "Q4_K")),
        "q2": (0, file("llama", "Q2_0", 64, "Q8_0")), "iq1bn": (0, file("llama", "IQ1_BN", 64, "IQ4_NL")), "iq2bn": (0, file("bitnet-25", "IQ2_BN", 64, "Q4_0")),
        "iq2bn-r4": (0, file("bitnet", "IQ2_BN_R4", 64)), "scale": (0, file("bitnet", "IQ2_BN", 64, scale_tensors=True)), "f16": (4, file("llama", "F16", 32)),
        "embed": (0, file("qwen3", "I2_S", 32, norms_in=True)),
    }
    for name, (flags, (kv, tensors)) in seeds.items():
        with tempfile.NamedTemporaryFile() as f:
            c.write(f.name, kv, tensors)
            open(os.path.join(OUT, name), "wb").write(bytes([flags]) + open(f.name, "rb").read())
    model = open(os.path.join(tests, "oracle-models/onebit-3b/tokenizer.model"), "rb").read()
    open(os.path.join(OUT, "tokenizer-model"), "wb").write(b"\x08" + model)


main()
