#!/usr/bin/env python3
"""The encoder here against the tokenizers library, and what the training text must not hold; `python3 -m unittest` in this folder."""
import os
import random
import unittest

import data
import encoding

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../crates/bitnet-cli/demo-model")


class Data(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(FOLDER, "tokenizer.json")
        self.encoder = encoding.Encoder(self.path)

    def test_ids_are_those_of_the_library(self):
        from tokenizers import Tokenizer

        library = Tokenizer.from_file(self.path)
        rng = random.Random(3)
        for _ in range(20000):
            question, answer, _ = data.exchange(rng, rng.randrange(1000))
            for text in (question, answer, question + "  \n\t" + answer):
                self.assertEqual(self.encoder.encode(text), library.encode(text, add_special_tokens=False).ids, repr(text))
                self.assertEqual(self.encoder.decode(self.encoder.encode(text)), text)
        self.assertEqual(self.encoder.size, library.get_vocab_size())
        rendered = "System:Be brief.<|eot_id|>User:1 + 2<|eot_id|>Assistant:1 + 2 = 3<|eot_id|>User:Thanks<|eot_id|>Assistant:"
        messages = [("System", "Be brief."), ("User", "1 + 2"), ("Assistant", "1 + 2 = 3"), ("User", "Thanks")]
        self.assertEqual(self.encoder.prompt(messages), library.encode(rendered).ids)

    def test_labels_are_the_tokens_of_the_assistant(self):
        ids, labels = data.batch(self.encoder, 0, 0, 8, 256)
        for ids, labels in zip(ids.tolist(), labels.tolist()):
            for here, label in zip(ids[1:], labels):
                self.assertIn(label, (here, data.IGNORE))
            text = self.encoder.decode([label for label in labels if label >= 0])
            self.assertNotIn("User", text)

    def test_what_is_held_out_is_never_taught(self):
        rng = random.Random(4)
        taught = [data.add(rng) for _ in range(20000)]
        for _, answer, _ in taught:
            a, _, b, _, _ = answer.split()
            self.assertFalse(data.is_held_out(int(a), int(b)))
        share = sum(data.is_held_out(a, b) for a in range(1000) for b in range(1000)) / 1e6
        self.assertAlmostEqual(share, 1 / 16, delta=0.002)


if __name__ == "__main__":
    unittest.main()
