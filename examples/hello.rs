//! Loads a model and prints its answer as it comes:
//! `cargo run --release --example hello -- <model folder> "<question>"`.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Context;
use bitnet_model::{Device, Message, Model, Prompt};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().context("give a model folder and a question")?;
    let question = args.next().context("give a question after the model folder")?;
    let mut model = Model::load(folder, Device::Auto)?;
    let options = model.generate_options();
    let messages = [Message::user(question)];
    let answer = model
        .generator()
        .generate(Prompt::Chat(&messages), &options, |event| {
            print!("{}", event.text());
            match std::io::stdout().flush() {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
    println!("\n{:.1} tokens/s", answer.timings.decode_rate());
    Ok(())
}
