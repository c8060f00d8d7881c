#!/usr/bin/env python3
"""Writes tokenizer.json and tokenizer_config.json of the demo model; needs the tokenizers library.

    python3 tools/train-demo/tokenizer.py crates/bitnet-cli/demo-model
"""
import argparse
import collections
import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

import data
import encoding
import facts

SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
VOCAB = 768


def merges_of(texts, n):
    """The `n` most useful merges whose left part begins with a space; the roles, which begin a line, come first.

    That is byte-pair encoding with a restriction: each merge lengthens the beginning of words, so a word is a known
    beginning and single letters."""
    merges, tokens = [], set()
    for role in encoding.ROLES:
        for i in range(1, len(role)):
            merges.append((role[:i], role[i]))
    alphabet = encoding.byte_alphabet()
    counts = collections.Counter(p for text in texts for p in encoding.pieces(text) if p.startswith(" ") and len(p) > 1)
    words = [(tuple(alphabet[b] for b in p.encode()), c) for p, c in counts.items()]
    while len(merges) < n:
        pairs = collections.Counter()
        for parts, c in words:
            if len(parts) > 1:
                pairs[parts[:2]] += c
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [((p[0] + p[1], *p[2:]) if p[:2] == best else p, c) for p, c in words]
    tokens.update(a + b for a, b in merges)
    assert len(tokens) == n, "two merges make the same token"
    return merges


def build():
    rng = random.Random(1)
    # What the model has to say weighs as much as what it is asked.
    texts = [t for answer, questions in facts.PROJECT + facts.SELF for q in questions for t in (q, answer)]
    texts += [t for _ in range(3000) for t in data.exchange(rng, None)[:2]]
    special = encoding.special_tokens()
    alphabet = sorted(encoding.byte_alphabet().values())
    merges = merges_of(texts, VOCAB - len(special) - len(alphabet))
    vocab = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    begin = encoding.BEGIN
    tok.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, tok.token_to_id(begin))]
    )
    assert tok.get_vocab_size() == VOCAB
    return tok


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    os.makedirs(folder, exist_ok=True)
    build().save(os.path.join(folder, "tokenizer.json"))
    config = {
        "bos_token": encoding.BEGIN,
        "chat_template": encoding.TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": encoding.END_OF_TURN,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1024,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    main()
