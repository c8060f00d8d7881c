//! A model in the program's memory is the model in the folder that its bytes come from.

use std::ops::ControlFlow;

use bitnet_model::{Checkpoint, Device, Existing, Files, MemoryFiles, Message, Model, Prompt, convert};

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("oracle/bitnet-packed/", $name)))
    };
}

const FILES: &[(&str, &[u8])] = &[
    file!("config.json"),
    file!("generation_config.json"),
    file!("model.safetensors"),
    file!("special_tokens_map.json"),
    file!("tokenizer.json"),
    file!("tokenizer_config.json"),
];

/// The files, copied to the heap as those of a program that reads or downloads them.
fn embedded(files: &[(&str, &[u8])]) -> Files {
    let mut memory = MemoryFiles::new("tiny");
    for (name, content) in files {
        memory = memory.with(*name, content.to_vec());
    }
    memory.into()
}

fn answer(files: Files) -> String {
    let mut model = Model::load(files, Device::Cpu).unwrap();
    let mut options = model.generate_options();
    options.sampling.temperature = 0.0;
    let question = [Message::user("Is the chimney of the old brickworks still used?")];
    let mut generator = model.generator();
    let answer = generator.generate(Prompt::Chat(&question), &options, |_| ControlFlow::Continue(()));
    answer.unwrap().text
}

#[test]
fn it_answers_as_from_its_folder() {
    let folder = Files::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/bitnet-packed"));
    assert_eq!(answer(embedded(FILES)), "No. A pair of storks lives on it now.");
    assert_eq!(answer(folder), answer(embedded(FILES)));
}

#[test]
fn it_can_be_converted() {
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(embedded(FILES)).unwrap();
    convert(&source, folder.path(), Existing::Keep, |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(answer(folder.path().into()), answer(embedded(FILES)));
}

#[test]
fn what_is_missing_or_cut_off_is_named() {
    let error = |files: &[(&str, &[u8])]| Checkpoint::open(embedded(files)).unwrap_err().to_string();
    assert!(error(&[]).contains("tiny: holds no config.json"));
    assert!(error(FILES.split_at(1).0).contains("tiny: holds neither model.safetensors nor"));
    let cut = FILES[2].1.split_at(1000).0;
    let files = [FILES[0], ("model.safetensors", cut)];
    assert!(error(&files).starts_with("tiny/model.safetensors: claims a header of"));
}
