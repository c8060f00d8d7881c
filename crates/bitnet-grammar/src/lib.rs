//! JSON schemas, regular expressions and grammars that answers obey.
#![forbid(unsafe_code)]
