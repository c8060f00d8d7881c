//! OpenAI's API over HTTP for BitNet b1.58 models.
#![forbid(unsafe_code)]
