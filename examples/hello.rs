//! Loads a model and asks it a question: `cargo run --release --example hello [-- <model folder> "<question>"]`.

use std::ops::ControlFlow;

use bitnet_examples::{model_folder, text_or};
use bitnet_model::{Device, Message, Model, Prompt};

fn main() -> anyhow::Result<()> {
    let mut model = Model::load(model_folder(), Device::Auto)?;
    let options = model.generate_options();
    let question = [Message::user(text_or("What is 17 + 25?"))];
    let answer = model
        .generator()
        .generate(Prompt::Chat(&question), &options, |_| ControlFlow::Continue(()))?;
    println!("{}", answer.text);
    Ok(())
}
