"""BitNet b1.58 as transformers' BitNetForCausalLM computes it, for training and for the exported weights.

Weights are ternarized by their mean magnitude, activations rounded to 8 bits by the largest of each token; gradients pass both
as if nothing had happened (straight-through). Parameters are a dict of tensors under the names of the checkpoint."""
import dataclasses

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Shape:
    vocab: int
    hidden: int = 384
    layers: int = 6
    heads: int = 6
    kv_heads: int = 3
    ffn: int = 1024
    context: int = 1024
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self):
        return self.hidden // self.heads

    def matrices(self):
        """(rows, columns) of each ternary matrix."""
        d, kv = self.hidden, self.kv_heads * self.head_dim
        sizes = {
            "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (self.ffn, d), "mlp.up_proj": (self.ffn, d), "mlp.down_proj": (d, self.ffn),
        }
        return {f"model.layers.{i}.{name}.weight": size for i in range(self.layers) for name, size in sizes.items()}

    def norms(self):
        sizes = {
            "input_layernorm": self.hidden, "post_attention_layernorm": self.hidden,
            "self_attn.attn_sub_norm": self.hidden, "mlp.ffn_sub_norm": self.ffn,
        }
        names = {f"model.layers.{i}.{name}.weight": n for i in range(self.layers) for name, n in sizes.items()}
        return {**names, "model.norm.weight": self.hidden}


def initial(shape, seed, device):
    rng = torch.Generator().manual_seed(seed)
    params = {"model.embed_tokens.weight": torch.randn(shape.vocab, shape.hidden, generator=rng) * 0.05}
    for name, size in shape.matrices().items():
        params[name] = torch.randn(size, generator=rng) * 0.02
    for name, n in shape.norms().items():
        params[name] = torch.ones(n)
    return {name: p.to(device).requires_grad_() for name, p in params.items()}


def through(x, rounded):
    """`rounded`, with the gradient of `x`. The sum is an integer only nearly, and one again as bfloat16."""
    return x + (rounded - x).detach() if torch.is_grad_enabled() else rounded


def ternarize(weight):
    """Ternary values and their scale."""
    mean = weight.detach().abs().mean().clamp(min=1e-5)
    scaled = weight * (1.0 / mean)
    return through(scaled, scaled.detach().round().clamp(-1, 1)), mean


def quantize(x, dtype):
    scale = 127.0 / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
    scaled = x * scale
    return through(scaled, scaled.detach().round().clamp(-128, 127)).to(dtype), scale


def rms_norm(x, weight, eps):
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def rotate(x, cos, sin):
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def forward(shape, params, ids, dtype):
    """Logits (batch, tokens, vocab) f32. `dtype` is that of products, keys and values: bfloat16 to train, float32 to be exact.

    A matrix among `params` is a float tensor, which is ternarized, or what it became: (ternary values, scale)."""
    (batch, tokens), heads, dim = ids.shape, shape.heads, shape.head_dim

    def linear(quantized, name):
        q, scale = quantized
        ternary, mean = params[name] if isinstance(params[name], tuple) else ternarize(params[name])
        return F.linear(q, ternary.to(dtype)).float() * (mean / scale)

    angles = torch.arange(tokens, device=ids.device, dtype=torch.float32)[:, None] * (
        1.0 / shape.theta ** (torch.arange(0, dim, 2, device=ids.device, dtype=torch.float32) / dim)
    )
    cos, sin = angles.cos(), angles.sin()
    embedding = params["model.embed_tokens.weight"].to(torch.bfloat16)
    h = F.embedding(ids, embedding).float()
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        x = quantize(rms_norm(h, params[layer + "input_layernorm.weight"], shape.eps), dtype)
        q, k, v = (
            linear(x, f"{layer}self_attn.{p}_proj.weight").view(batch, tokens, -1, dim).transpose(1, 2) for p in "qkv"
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(heads // shape.kv_heads, 1) for t in (k, v))
        a = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), is_causal=True)
        a = a.transpose(1, 2).reshape(batch, tokens, -1).float()
        a = rms_norm(a, params[layer + "self_attn.attn_sub_norm.weight"], shape.eps)
        h = h + linear(quantize(a, dtype), layer + "self_attn.o_proj.weight")
        x = quantize(rms_norm(h, params[layer + "post_attention_layernorm.weight"], shape.eps), dtype)
        f = linear(x, layer + "mlp.gate_proj.weight").relu().square() * linear(x, layer + "mlp.up_proj.weight")
        f = rms_norm(f, params[layer + "mlp.ffn_sub_norm.weight"], shape.eps)
        h = h + linear(quantize(f, dtype), layer + "mlp.down_proj.weight")
    h = rms_norm(h, params["model.norm.weight"], shape.eps)
    return F.linear(h.to(dtype), embedding.to(dtype)).float()


# What stored logits are of those that training ends with. Text that follows from its question teaches certainty without limit, until
# no temperature that people choose changes a word. A power of two leaves every digit, and so every greedy answer, as it is.
CALMED = 0.5


@torch.no_grad()
def finished(shape, params):
    """The weights as they are stored: ternary values with a scale, everything else in bfloat16."""
    out = {}
    for name, p in params.items():
        p = p.detach()
        if name in shape.matrices():
            ternary, mean = ternarize(p)
            out[name] = (ternary, mean.to(torch.bfloat16).float())
        else:
            out[name] = p.to(torch.bfloat16).float()
    # Nothing but the logits is computed with it.
    out["model.norm.weight"] *= CALMED
    return out


@torch.no_grad()
def greedy(shape, params, prompts, end, most):
    """The most probable answer to each prompt (token ids), up to `end`, of at most `most` tokens."""
    device = params["model.norm.weight"].device
    answers = [[] for _ in prompts]
    open_rows = list(range(len(prompts)))
    while open_rows:
        rows = [prompts[i] + answers[i] for i in open_rows]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, known in enumerate(rows):
            ids[row, : len(known)] = torch.tensor(known)
        logits = forward(shape, params, ids.to(device), torch.float32)
        last = torch.tensor([len(known) - 1 for known in rows], device=device)
        chosen = logits[torch.arange(len(rows), device=device), last].argmax(-1).tolist()
        for i, token in zip(list(open_rows), chosen):
            if token != end:
                answers[i].append(token)
            if token == end or len(answers[i]) == most:
                open_rows.remove(i)
    return answers
