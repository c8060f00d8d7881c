//! Chooses tokens by a rule of its own: always the most likely one, as long as the model is sure of it. Shows every choice:
//! `cargo run --release --example sampler [-- <model folder> "<question>"]`.

use bitnet_examples::{model_folder, text_or};
use bitnet_model::{Device, Message, Model, Prompt, Session, Want, negative_log_likelihood};

/// A probability below which the answer ends.
const SURE: f64 = 0.5;

fn main() -> anyhow::Result<()> {
    let mut model = Model::load(model_folder(), Device::Auto)?;
    let question = [Message::user(text_or("Which is larger, 47 or 85?"))];
    let generator = model.generator();
    let prompt = generator.prompt_ids(Prompt::Chat(&question))?;
    let room = generator.context().saturating_sub(prompt.len());
    drop(generator);
    let end = model.config().eos.clone();

    // A step computes tokens that follow on those of a sequence, and gives the logits of the rows that are asked for.
    let mut session = Session::new(model.backend_mut());
    let mut answer = Vec::new();
    let mut logits = Vec::new();
    for part in prompt.chunks(session.spec().max_batch) {
        let last = [part.len() - 1];
        logits = session.step(&[(0, part)], Want::Logits(&last))?.to_vec();
    }
    let mut sure = true;
    while answer.len() < room {
        let Some((id, probability)) = most_likely(&logits) else {
            break;
        };
        if end.contains(&id) {
            break;
        }
        sure = probability >= SURE;
        if !sure {
            break;
        }
        answer.push((id, probability));
        logits = session.step(&[(0, &[id])], Want::Logits(&[0]))?.to_vec();
    }

    let generator = model.generator();
    let ids: Vec<u32> = answer.iter().map(|&(id, _)| id).collect();
    println!(
        "{}{}",
        generator.decode(&ids)?,
        if sure { "" } else { " ... (not sure)" }
    );
    for (id, probability) in answer {
        println!("{:9.4} % {:?}", 100.0 * probability, generator.decode(&[id])?);
    }
    Ok(())
}

/// The token of the largest logit, and its probability.
fn most_likely(logits: &[f32]) -> Option<(u32, f64)> {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))?;
    let id = u32::try_from(best).ok()?;
    Some((id, (-negative_log_likelihood(logits, id)).exp()))
}
