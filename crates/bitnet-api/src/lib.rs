//! OpenAI's requests and answers, without HTTP.
#![forbid(unsafe_code)]
