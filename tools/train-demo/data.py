"""Conversations to learn from, made up from a seed: sums, differences, comparisons, counting, words backwards, and facts.py."""
import random
import zlib

import numpy as np

import facts

IGNORE = -100


def is_held_out(a, b):
    """Whether sums and differences of these two numbers, in either order, are kept for the test: one pair in sixteen."""
    low, high = min(a, b), max(a, b)
    return ((low * 1000 + high) * 2654435761 & 0xFFFFFFFF) >> 28 == 0


def is_held_out_word(word):
    return zlib.crc32(word.lower().encode()) % 16 == 0


def number(rng, most=3):
    digits = rng.choices((1, 2, 3), (0.15, 0.35, 0.5))[0]
    digits = min(digits, most)
    return rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def pair(rng, held_out=False):
    while True:
        a, b = number(rng), number(rng)
        if is_held_out(a, b) == held_out:
            return a, b


def maybe(rng, p, text):
    return text if rng.random() < p else ""


def phrase(rng, text):
    """The ways in which people write the same question."""
    r = rng.random()
    if r < 0.3:
        text = text[0].lower() + text[1:]
    elif r < 0.33:
        text = text.upper()
    if text[-1] in "?.!" and rng.random() < 0.3:
        text = text[:-1]
    if rng.random() < 0.12:
        start = rng.choice(["please ", "Please ", "So, ", "Now ", "Hi, ", "and ", "OK, ", "Tell me, ", "can you tell me, ", "Hello! "])
        text = start + (text[0].lower() + text[1:] if start[-2] != "!" else text)
    # The chat template takes away what is around a message.
    return (text + maybe(rng, 0.05, rng.choice([" please", " Thanks.", " thanks", "?", "!", ", please"]))).strip()


def typo(rng, text):
    at = rng.randrange(len(text))
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1 :] or text
    if kind == 1:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]


SUMS = [
    "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a} + {b} = ?", "{a} + {b}?", "What is {a} + {b}?", "What is {a} plus {b}?",
    "Add {a} and {b}.", "Add {a} to {b}.", "How much is {a} plus {b}?", "How much is {a} + {b}?", "Calculate {a} + {b}.",
    "Compute {a} + {b}.", "{a} plus {b}", "What is the sum of {a} and {b}?", "Sum of {a} and {b}", "What does {a} + {b} give?",
    "Can you add {a} and {b}?", "What's {a} + {b}?", "{a}+{b}=", "What do you get when you add {a} and {b}?", "{a} and {b} make?",
]
DIFFERENCES = [
    "{a} - {b}", "{a}-{b}", "{a} - {b} =", "{a} - {b} = ?", "{a} - {b}?", "What is {a} - {b}?", "What is {a} minus {b}?",
    "Subtract {b} from {a}.", "How much is {a} minus {b}?", "How much is {a} - {b}?", "Calculate {a} - {b}.", "Compute {a} - {b}.",
    "{a} minus {b}", "Take {b} away from {a}.", "What does {a} - {b} give?", "What's {a} - {b}?", "{a}-{b}=",
    "Can you subtract {b} from {a}?", "What is {a} take away {b}?",
]
MORE = ["plus {b}?", "And plus {b}?", "Add {b}.", "add {b} to that", "Add {b} to it.", "and {b} more?", "+ {b}", "Now add {b}.", "plus {b}"]
LESS = ["minus {b}?", "And minus {b}?", "Subtract {b}.", "subtract {b} from that", "and {b} less?", "- {b}", "Now subtract {b}.", "minus {b}"]
LARGER, SMALLER = ["larger", "greater", "bigger", "more", "higher"], ["smaller", "less", "lower"]
BACKWARDS = [
    'Spell "{w}" backwards.', "Spell {w} backwards.", "spell the word {w} backwards", 'Spell the word "{w}" backwards.',
    'Reverse the word "{w}".', "Reverse {w}.", "{w} backwards", 'What is "{w}" backwards?', "What is {w} spelled backwards?",
    "Write {w} backwards.", "How do you spell {w} backwards?", "Can you spell {w} backwards?", "Reverse: {w}", "turn around {w}",
]
SPELL = ["Spell {w}.", 'Spell "{w}".', "How do you spell {w}?", "Spell the word {w}."]
LETTERS = ['How many letters are in "{w}"?', "How many letters has {w}?", "How many letters are in {w}?", "Count the letters of {w}."]


def add(rng, held_out=False):
    a, b = pair(rng, held_out)
    template = rng.choice(SUMS) if rng.random() < 0.7 else SUMS[0]
    return phrase(rng, template.format(a=a, b=b)), f"{a} + {b} = {a + b}", a + b


def subtract(rng, held_out=False):
    a, b = pair(rng, held_out)
    if a < b and rng.random() < 0.8:
        a, b = b, a
    template = rng.choice(DIFFERENCES) if rng.random() < 0.7 else DIFFERENCES[0]
    return phrase(rng, template.format(a=a, b=b)), f"{a} - {b} = {a - b}", a - b


def follow_up(rng, last):
    """Goes on with the result of the turn before."""
    while True:
        b = number(rng)
        if not is_held_out(last, b):
            break
    if rng.random() < 0.6:
        return phrase(rng, rng.choice(MORE).format(b=b)), f"{last} + {b} = {last + b}", last + b
    return phrase(rng, rng.choice(LESS).format(b=b)), f"{last} - {b} = {last - b}", last - b


def compare(rng):
    a = number(rng)
    b = a if rng.random() < 0.05 else max(0, a + rng.randint(-12, 12)) if rng.random() < 0.3 else number(rng)
    larger = rng.random() < 0.6
    word = rng.choice(LARGER if larger else SMALLER)
    relation = "is larger than" if a > b else "is smaller than" if a < b else "is equal to"
    kind = rng.randrange(3)
    if kind == 0:
        noun = maybe(rng, 0.2, "number ")
        question = f"Which {noun}is {word}, {a} or {b}?" if rng.random() < 0.7 else f"What is {word}, {a} or {b}?"
        if a == b:
            return phrase(rng, question), f"{a} is equal to {b}."
        first, second = (max(a, b), min(a, b)) if larger else (min(a, b), max(a, b))
        return phrase(rng, question), f"{first} is {'larger' if larger else 'smaller'} than {second}."
    if kind == 1:
        yes = (a > b) if larger else (a < b)
        sign = rng.random() < 0.2
        question = f"Is {a} {'>' if larger else '<'} {b}?" if sign else f"Is {a} {word} than {b}?"
        return phrase(rng, question), f"{'Yes' if yes else 'No'}, {a} {relation} {b}."
    question = rng.choice(["Compare {a} and {b}.", "Compare {a} with {b}.", "{a} or {b}?", "compare {a} {b}"])
    return phrase(rng, question.format(a=a, b=b)), f"{a} {relation} {b}."


def count(rng):
    kind, n, a = rng.randrange(5), rng.randint(2, 12), number(rng)
    if kind == 0:
        n = rng.randint(2, 20)
        return phrase(rng, rng.choice(["Count to {n}.", "Count up to {n}.", "Count from 1 to {n}."]).format(n=n)), listed(range(1, n + 1))
    if kind == 1:
        return phrase(rng, f"Count from {a} to {a + n}."), listed(range(a, a + n + 1))
    if kind == 2:
        a = max(a, n)
        verb = rng.choice(["Count down from", "Count backwards from", "Count from"])
        return phrase(rng, f"{verb} {a} to {a - n}."), listed(range(a, a - n - 1, -1))
    if kind == 3:
        text = rng.choice(["What comes after {a}?", "Which number comes after {a}?", "What is the next number after {a}?", "What follows {a}?"])
        return phrase(rng, text.format(a=a)), f"{a + 1} comes after {a}."
    a += 1
    text = rng.choice(["What comes before {a}?", "Which number comes before {a}?", "What is the number before {a}?"])
    return phrase(rng, text.format(a=a)), f"{a - 1} comes before {a}."


def listed(numbers):
    return ", ".join(map(str, numbers))


def word(rng, held_out=False):
    while True:
        if rng.random() < 0.4:
            made = rng.choice(facts.WORDS)
        elif rng.random() < 0.8:
            made = "".join(
                rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + maybe(rng, 0.4, rng.choice("lmnrstk"))
                for _ in range(rng.randint(1, 4))
            )
        else:
            made = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 10)))
        if len(made) > 2 and is_held_out_word(made) == held_out:
            return made


def spell(rng, held_out=False):
    w, r = word(rng, held_out), rng.random()
    if rng.random() < 0.1:
        w = w.capitalize()
    if r < 0.8 or held_out:
        # Not through `phrase`, which may change the word.
        template = rng.choice(BACKWARDS)
        template = template[0].lower() + template[1:] if rng.random() < 0.3 and template[0] != "{" else template
        template = template[:-1] if template[-1] in ".?" and rng.random() < 0.3 else template
        return template.format(w=w), w[::-1]
    if r < 0.9:
        return rng.choice(SPELL).format(w=w), "-".join(w)
    return rng.choice(LETTERS).format(w=w), str(len(w))


def known(rng, entries):
    answer, questions = rng.choice(entries)
    text = phrase(rng, rng.choice(questions))
    return (typo(rng, text) if rng.random() < 0.1 else text), answer


def outside(rng):
    """What it must decline."""
    r = rng.random()
    if r < 0.15:
        a, b = rng.randrange(1000, 10 ** rng.randint(4, 7)), number(rng) if rng.random() < 0.5 else rng.randrange(1000, 10**5)
        if rng.random() < 0.5:
            a, b = b, a
        template = rng.choice(SUMS + DIFFERENCES)
        return phrase(rng, template.format(a=a, b=b)), facts.TOO_LARGE
    if r < 0.35:
        a, b, c = number(rng), number(rng), number(rng)
        template = rng.choice([
            "{a} * {b}", "{a} x {b}", "{a} times {b}", "What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.", "{a} / {b}",
            "Divide {a} by {b}.", "What is {a} / {b}?", "What is {a} divided by {b}?", "{a} + {b} + {c}", "What is {a} + {b} - {c}?",
            "{a}.{b} + {c}", "What is {a} + {b} + {c}?", "{a} - {b} - {c}", "{a} squared", "{a} % {b}", "{a} ^ {b}", "{a}*{b}", "{a}/{b}",
        ])
        return phrase(rng, template.format(a=a, b=b, c=c)), facts.OTHER_ARITHMETIC
    if r < 0.4:
        low, high = rng.choice([(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F640)])
        text = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 12))).strip()
        # A made-up line that happens to be a question for something else is as rare as it looks.
        return text or "...", facts.UNKNOWN
    def thing():
        return rng.choice(facts.THINGS) if rng.random() < 0.5 else rng.choice(facts.WORDS) if rng.random() < 0.5 else word(rng)
    text = rng.choice(facts.OUTSIDE).format(x=thing(), y=thing())
    return phrase(rng, text), facts.UNKNOWN


def exchange(rng, last):
    """A question, its answer, and the result that the next question may go on with."""
    r = rng.random()
    if last is not None and 0 <= last <= 999 and r < 0.2:
        return follow_up(rng, last)
    r = rng.random()
    if r < 0.40:
        return add(rng)
    if r < 0.60:
        return subtract(rng)
    for share, make in ((0.68, compare), (0.75, count), (0.84, spell)):
        if r < share:
            return *make(rng), None
    if r < 0.91:
        return *known(rng, facts.PROJECT), None
    if r < 0.94:
        return *known(rng, facts.SELF), last
    return *outside(rng), None


def row(rng, encoder, length):
    """A conversation of `length` tokens and the token that is to follow each, where the assistant is to say it."""
    ids = [encoder.begin]
    labels = []
    end = [encoder.end_of_turn]
    if rng.random() < 0.15:
        ids += encoder.role["System"] + encoder.encode(rng.choice(facts.SYSTEM)) + end
    last = None
    while len(ids) <= length:
        question, answer, last = exchange(rng, last)
        ids += encoder.role["User"] + encoder.encode(question) + end + encoder.role["Assistant"]
        labels += [IGNORE] * (len(ids) - 1 - len(labels))
        spoken = encoder.encode(answer) + end
        ids += spoken
        labels += spoken
    return ids[:length], labels[:length]


def batch(encoder, seed, index, rows, length):
    """Batch `index`: token ids and labels, (rows, length) each."""
    rng = random.Random(f"{seed} {index}")
    made = [row(rng, encoder, length) for _ in range(rows)]
    return np.array([ids for ids, _ in made], np.int16), np.array([labels for _, labels in made], np.int16)


def examinations(n, seed=7):
    """Questions never learned from, by subject, with their answers; of facts.py, every question as it is written."""
    rng = random.Random(seed)
    plain = [[f"{a} + {b}", f"{a} + {b} = {a + b}"] for a, b in (pair(rng, True) for _ in range(n))]
    return {
        "additions": plain,
        "additions, any words": [list(add(rng, True)[:2]) for _ in range(n)],
        "subtractions, any words": [list(subtract(rng, True)[:2]) for _ in range(n)],
        "comparisons": [list(compare(rng)) for _ in range(n)],
        "counting": [list(count(rng)) for _ in range(max(1, n // 2))],
        "words backwards": [list(spell(rng, True)) for _ in range(n)],
        "project": [[q, answer] for answer, questions in facts.PROJECT for q in questions],
        "itself": [[q, answer] for answer, questions in facts.SELF for q in questions],
        "declined": [list(outside(rng)) for _ in range(max(1, n // 2))],
    }
