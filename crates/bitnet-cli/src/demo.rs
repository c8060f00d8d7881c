//! The demonstration model: its files are part of the program, so that it answers wherever the program runs.

use bitnet_model::Files;

/// A file of the folder with the model.
macro_rules! file {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../bitnet-model/tests/oracle/bitnet-packed/", $name)),
        )
    };
}

const FILES: &[(&str, &[u8])] = &[
    file!("config.json"),
    file!("generation_config.json"),
    file!("model.safetensors"),
    file!("tokenizer.json"),
    file!("tokenizer_config.json"),
];

/// What people are told of it.
pub(crate) const INTRODUCTION: &str = "no model given: using the demo model inside this program, which knows one answer, to \
     \"Is the chimney of the old brickworks still used?\"; -m names another model";

/// A question that it can answer.
pub(crate) const QUESTION: &str = "Is the chimney of the old brickworks still used?";

/// Its answer.
pub(crate) const ANSWER: &str = "No. A pair of storks lives on it now.";

/// The model's files.
pub(crate) fn files() -> Files {
    Files::Embedded {
        name: "demo-model",
        files: FILES,
    }
}
