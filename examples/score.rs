//! Asks a model how likely it finds each of several answers, all computed side by side in one step:
//! `cargo run --release --example score [-- <model folder> "<question>" "<answer>" ...]`.

use bitnet_examples::{model_folder, text_or};
use bitnet_model::{Device, LoadOptions, Message, Model, Prompt, Session, Want, negative_log_likelihood};

/// Tokens of a question and an answer.
const CONTEXT: usize = 256;

fn main() -> anyhow::Result<()> {
    let question = text_or("What is 17 + 25?");
    let mut answers: Vec<String> = std::env::args().skip(3).collect();
    if answers.is_empty() {
        answers = ["17 + 25 = 42", "17 + 25 = 32", "17 + 25 = 43", "nedrag"]
            .map(str::to_owned)
            .into();
    }
    let options = LoadOptions {
        n_seqs: answers.len(),
        context: Some(CONTEXT),
        max_batch: CONTEXT * answers.len(),
        ..LoadOptions::from(Device::Auto)
    };
    let mut model = Model::load(model_folder(), options)?;
    let prompt = model
        .generator()
        .prompt_ids(Prompt::Chat(&[Message::user(question)]))?;
    let Some(tokenizer) = model.tokenizer() else {
        anyhow::bail!("the model has no tokenizer");
    };

    // A sequence an answer. Row i of its logits predicts token i + 1, so the last token of the prompt predicts the first one
    // of the answer.
    let mut texts = Vec::new();
    let mut n_tokens = 0;
    let mut rows = Vec::new();
    let mut predicted = Vec::new();
    for answer in &answers {
        let ids = [prompt.clone(), tokenizer.encode_plain(answer)?].concat();
        rows.extend(n_tokens + prompt.len() - 1..n_tokens + ids.len() - 1);
        n_tokens += ids.len();
        predicted.push(ids[prompt.len()..].to_vec());
        texts.push(ids);
    }
    let vocab = model.config().vocab;
    let runs: Vec<(usize, &[u32])> = texts.iter().map(|ids| &ids[..]).enumerate().collect();
    let mut session = Session::new(model.backend_mut());
    let logits = session.step(&runs, Want::Logits(&rows))?;
    let mut logits = logits.chunks_exact(vocab);
    for (answer, ids) in answers.iter().zip(predicted) {
        let scores = ids.iter().zip(&mut logits);
        let nats: f64 = scores
            .map(|(&id, logits)| negative_log_likelihood(logits, id))
            .sum();
        println!("{:9.4} % {answer}", 100.0 * (-nats).exp());
    }
    Ok(())
}
