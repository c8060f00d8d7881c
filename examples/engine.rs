//! A model on a thread of its own, two answers at once, and one of them cancelled from elsewhere:
//! `cargo run --release --example engine [-- <model folder>]`.
//!
//! It uses nothing but `bitnet-model`, so that it can be copied into a program of one's own.

use std::io::Write;
use std::thread;

use bitnet_model::schedule::{Event, Request};
use bitnet_model::{Device, Engine, FinishReason, Message, Model, Prompt, Result};

/// Where the demo model is, seen from the folder of the project.
const DEMO_MODEL: &str = "crates/bitnet-cli/demo-model";

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| DEMO_MODEL.to_owned());
    let model = Model::load(folder, Device::Auto)?;
    let engine = Engine::start(model, Default::default())?;

    // Clients can be sent to other threads and copied; each request has events of its own.
    let client = engine.client();
    let sum = thread::spawn(move || -> Result<String> {
        let prompt = client.prompt_ids(Prompt::Chat(&[Message::user("What is 17 + 25?")]))?;
        let mut answer = String::new();
        for event in client.stream(Request::new(prompt, client.generate_options()))? {
            match event {
                Event::Token { text, .. } | Event::Finished { text, .. } => answer += &text,
                Event::Failed(error) => return Err(error),
                _ => {}
            }
        }
        Ok(answer)
    });

    let client = engine.client();
    let mut options = client.generate_options();
    options.ignore_eos = true;
    let prompt = client.prompt_ids(Prompt::Chat(&[Message::user("Count from 1 to 100.")]))?;
    let mut stream = client.stream(Request::new(prompt, options))?;
    let ticket = stream.ticket();
    let mut n_tokens = 0;
    let mut reason = None;
    for event in &mut stream {
        match event {
            Event::Token { text, .. } => {
                n_tokens += 1;
                print!("{text}");
                std::io::stdout().flush().ok();
                if n_tokens == 5 {
                    // From any thread; here from another one.
                    let ticket = ticket.clone();
                    thread::spawn(move || ticket.cancel());
                }
            }
            Event::Finished { reason: why, .. } => reason = Some(why),
            Event::Failed(error) => return Err(error),
            _ => {}
        }
    }
    assert_eq!(reason, Some(FinishReason::Cancelled));
    let answer = sum
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    println!("\ncancelled; meanwhile: {answer}");
    Ok(())
}
