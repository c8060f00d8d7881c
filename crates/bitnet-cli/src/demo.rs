//! The demo model: its files are part of the program, so that it answers wherever the program runs. `demo-model/README.md`
//! tells what it knows and how it was made.

use bitnet_model::{Files, MemoryFiles};

/// A file of the folder with the model.
macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../demo-model/", $name)))
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
pub(crate) const INTRODUCTION: &str = "no model given: using the demo model inside this program, which adds, subtracts, compares, counts, \
     spells backwards and answers questions about this project; -m names another model";

/// A question that it can answer.
pub(crate) const QUESTION: &str = "What is 17 + 25?";

/// Its answer.
pub(crate) const ANSWER: &str = "17 + 25 = 42";

/// The model's files.
pub(crate) fn files() -> Files {
    let files = FILES
        .iter()
        .fold(MemoryFiles::new("demo-model"), |files, (name, content)| {
            files.with(*name, *content)
        });
    files.into()
}
