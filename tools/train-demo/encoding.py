"""Text to token ids as `tokenizer.json` says, without the tokenizers library, and the form of a conversation.

The vocabulary is byte-level BPE. Text is first cut into pieces: a run of letters or of other marks takes the space before it
along, a digit stands alone. Almost every merge begins with such a space, so a word at the beginning of a text or after a quote
stays spelled out, letter by letter, which is what turning it around needs."""
import functools
import json
import re
import unicodedata

# The pieces, over classes of characters: a letter, 0 digit, _ space, . anything else. `tokenizer.py` has the same in the words of
# the library: ` ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`. The class b is the one plain space.
PIECES = re.compile(r"b?a+|0|b?\.+|[b_]+(?![a0.])|[b_]+")
ASCII_PIECES = re.compile(r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
ROLES = ["User", "Assistant", "System"]
BEGIN, END, END_OF_TURN, N_SPECIAL = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", 16
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize + ':' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def special_tokens():
    """Llama 3's names in Llama 3's order."""
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(N_SPECIAL)]
    return [BEGIN, END, *reserved[:4], "<|start_header_id|>", "<|end_header_id|>", reserved[4], END_OF_TURN, *reserved[5:11]]


def byte_alphabet():
    """The character that byte-level vocabularies write for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in kept]
    return {**{b: chr(b) for b in kept}, **{b: chr(256 + i) for i, b in enumerate(moved)}}


def char_class(c):
    if c == " ":
        return "b"
    if c.isspace():
        return "_"
    return {"L": "a", "N": "0"}.get(unicodedata.category(c)[0], ".")


def pieces(text):
    if text.isascii():
        return ASCII_PIECES.findall(text)
    return [text[m.start() : m.end()] for m in PIECES.finditer("".join(map(char_class, text)))]


class Encoder:
    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            model = json.load(f)["model"]
        self.vocab = model["vocab"]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        self.special = {name: len(self.vocab) + i for i, name in enumerate(special_tokens())}
        self.size = len(self.vocab) + N_SPECIAL
        self.begin, self.end_of_turn = self.special[BEGIN], self.special[END_OF_TURN]
        self.alphabet = byte_alphabet()
        byte_of = {c: b for b, c in self.alphabet.items()}
        self.bytes = {i: bytes(byte_of[c] for c in piece) for piece, i in self.vocab.items()}
        self.piece = functools.lru_cache(1 << 20)(self.piece)
        self.role = {role: self.encode(role + ":") for role in ROLES}

    def piece(self, text):
        parts = [self.alphabet[b] for b in text.encode()]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:]))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, 1 << 30))
            if best not in self.ranks:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [best[0] + best[1]]
        return [self.vocab[p] for p in parts]

    def encode(self, text):
        """Ids of `text`, which holds no special token."""
        return [i for p in pieces(text) for i in self.piece(p)]

    def decode(self, ids):
        return b"".join(self.bytes.get(i, b"") for i in ids).decode(errors="replace")

    def prompt(self, messages):
        """Ids of a conversation, up to where the assistant speaks."""
        ids = [self.begin]
        for role, content in messages:
            ids += self.role[role] + self.encode(content) + [self.end_of_turn]
        return ids + self.role["Assistant"]
