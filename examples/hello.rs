//! Placeholder until the generator exists.
fn main() {}
