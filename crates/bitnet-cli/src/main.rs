//! The `bitnet` program.
#![forbid(unsafe_code)]

fn main() {}
