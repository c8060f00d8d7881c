//! What the examples beside this file share.

/// The model folder of the demo model.
const DEMO_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/bitnet-cli/demo-model");

/// The first argument, a model folder, or else the demo model's.
#[must_use]
pub fn model_folder() -> String {
    std::env::args().nth(1).unwrap_or_else(|| DEMO_MODEL.to_owned())
}

/// The second argument, or else `text`.
#[must_use]
pub fn text_or(text: &str) -> String {
    std::env::args().nth(2).unwrap_or_else(|| text.to_owned())
}
