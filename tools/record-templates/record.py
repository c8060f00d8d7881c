#!/usr/bin/env python3
"""Records what Jinja2, set up as transformers sets it up, makes of chat templates: crates/bitnet-model/tests/jinja/.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python record.py

templates.json: every template with every conversation (a text that fails is null, others are a 64-bit FNV-1a hash).
tables.json: small templates as tables, so that each value, filter, test, method and operator meets the others.
"""

import copy
import json
import pathlib
import re

from transformers.utils.chat_template_utils import _compile_jinja_template

import snippets
import templates

OUT = pathlib.Path(__file__).parents[2] / "crates/bitnet-model/tests/jinja"


def render(source, variables):
    """The text, None where rendering fails, and False for texts that are not compared: with an address, or a complex number."""
    try:
        text = _compile_jinja_template(source).render(**copy.deepcopy(variables))
    except Exception:
        return None
    return False if re.search(r" at 0x[0-9a-f]+|\dj\)$", text) else text


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def record_templates():
    variables = [
        {"tools": None, "documents": None, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>", **conversation}
        for conversation in templates.CONVERSATIONS
    ]
    renderings = {}
    for name, source in templates.TEMPLATES.items():
        texts = [render(source, given) for given in variables]
        assert False not in texts, name
        renderings[name] = {"source": source, "texts": [None if text is None else fnv1a(text) for text in texts]}
    return {"conversations": templates.CONVERSATIONS, "templates": renderings}


def record_tables():
    tables = []
    for pattern, rows, columns in snippets.tables():
        fill = lambda row, column: pattern.replace("ROW", row).replace("COLUMN", column)
        texts = [[render(fill(row, column), snippets.VARIABLES) for column in columns] for row in rows]
        tables.append({"pattern": pattern, "rows": rows, "columns": columns, "texts": texts})
    return {"variables": snippets.VARIABLES, "tables": tables}


def write(name, data):
    """JSON with a line for each entry of what is large."""
    compact = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            entries = "{\n" + ",\n".join(f"{compact(name)}:{compact(entry)}" for name, entry in value.items()) + "\n}"
        else:
            entries = "[\n" + ",\n".join(compact(entry) for entry in value) + "\n]"
        lines.append(f"{compact(key)}:{entries}")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


write("templates.json", record_templates())
write("tables.json", record_tables())
