//! Holds a conversation, a message a line, and shows the answers as they come:
//! `cargo run --release --example chat [-- <model folder>]`.

use std::io::{Write, stdin, stdout};
use std::ops::ControlFlow;

use bitnet_examples::model_folder;
use bitnet_model::{Device, Message, Model, Prompt};

fn main() -> anyhow::Result<()> {
    let mut model = Model::load(model_folder(), Device::Auto)?;
    let options = model.generate_options();
    // One generator for all turns: what it has computed of the conversation it does not compute again.
    let mut generator = model.generator();
    let mut conversation = Vec::new();
    for line in stdin().lines() {
        conversation.push(Message::user(line?));
        let answer = generator.generate(Prompt::Chat(&conversation), &options, |event| {
            print!("{}", event.text());
            match stdout().flush() {
                Ok(()) => ControlFlow::Continue(()),
                // Nobody reads on; an answer can be stopped at any token.
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        println!();
        eprintln!("{:.1} tokens/s", answer.timings.decode_rate());
        conversation.push(Message::assistant(answer.text));
    }
    Ok(())
}
