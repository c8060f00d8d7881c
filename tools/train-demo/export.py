"""A model folder in the form in which BitNet checkpoints are published: four ternary values to a byte."""
import json
import os
import struct

import torch

DTYPES = {torch.uint8: "U8", torch.bfloat16: "BF16"}


def pack(ternary):
    """Byte [r, c] of a [rows / 4, columns] matrix holds rows r, r + rows / 4, ... of column c, from the low bits, as t + 1."""
    codes = (ternary + 1).to(torch.uint8).view(4, ternary.shape[0] // 4, ternary.shape[1])
    return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6


def write_json(path, value):
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")
    os.replace(path + ".tmp", path)


def write_safetensors(path, tensors):
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    # The type with the wider elements first, so that every tensor is aligned.
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        blob = t.contiguous().cpu().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".tmp", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    os.replace(path + ".tmp", path)


def write_folder(folder, shape, encoder, stored):
    """`stored` is what `model.finished` gives."""
    bos, eos = encoder.begin, encoder.end_of_turn
    write_json(os.path.join(folder, "config.json"), {
        "architectures": ["BitNetForCausalLM"],
        "bos_token_id": bos,
        "eos_token_id": eos,
        "hidden_act": "relu2",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.context,
        "model_type": "bitnet",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "quantization_config": {"linear_class": "autobitlinear", "quant_method": "bitnet", "quantization_mode": "offline"},
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab,
    })
    write_json(os.path.join(folder, "generation_config.json"), {"bos_token_id": bos, "do_sample": False, "eos_token_id": eos})
    tensors = {}
    for name, value in stored.items():
        if isinstance(value, tuple):
            ternary, scale = value
            tensors[name] = pack(ternary)
            tensors[name + "_scale"] = scale.reshape(1).to(torch.bfloat16)
        else:
            tensors[name] = value.to(torch.bfloat16)
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
