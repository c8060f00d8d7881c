//! Any body of any request: a job or an error object, within bounded time and memory.
//!
//! An input is a byte that says which endpoint it is sent to, and the body.
//!
//! ```text
//! cargo +nightly fuzz run request fuzz/corpus/request fuzz/seeds/request -- -dict=fuzz/request.dict -max_len=8192 -max_total_time=120
//! ```
#![no_main]

use std::sync::LazyLock;

use bitnet_api::{Answers, ApiError, Job, Served};
use bitnet_model::schedule::{Event, FinishReason, Timings};
use bitnet_model::{Device, Model};
use libfuzzer_sys::fuzz_target;

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    // libFuzzer's hook aborts where a panic begins. Those of the libraries for tokens and grammars are caught and become errors;
    // one that is not caught still ends the process, at the edge to C.
    std::panic::set_hook(Box::new(|_| ()));
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/bitnet-cli/demo-model");
    let model = Model::load(folder, Device::Cpu).expect("the demo model");
    Served::new(&model, vec!["demo".to_owned()]).expect("its settings")
});

fuzz_target!(|data: &[u8]| {
    let Some((&endpoint, body)) = data.split_first() else {
        return;
    };
    if let Err(error) = ask(endpoint, body) {
        assert!((400..500).contains(&error.status), "{error:?}");
        assert!(error.message.len() < 2000, "{}", error.message);
        assert!(error.body()["error"]["message"].is_string());
    }
});

fn ask(endpoint: u8, body: &[u8]) -> Result<(), ApiError> {
    let fields = bitnet_api::parse(body)?;
    match endpoint % 5 {
        0 => answer(&bitnet_api::chat(&SERVED, fields)?),
        1 => answer(&bitnet_api::completion(&SERVED, fields)?),
        2 => drop(bitnet_api::tokenize(&SERVED, fields)?),
        3 => drop(bitnet_api::detokenize(&SERVED, fields)?),
        _ => drop(bitnet_api::apply_template(&SERVED, fields)?),
    }
    Ok(())
}

/// Answers with texts that look like calls and stop where none is expected.
fn answer(job: &Job) {
    let mut answers = Answers::new(&SERVED, job, "1");
    for (prompt, request) in job.requests.iter().enumerate() {
        assert!(!request.prompt.is_empty() && request.prompt.len() <= SERVED.context);
        answers.take(prompt, Event::Started { cached: 0 });
        for choice in 0..request.n {
            for (id, text) in [(66, "a <tool_call>{\"name\": \"f\", \"argu"), (67, "ments\": {\"a\": [1, \"}"), (68, "\"]}}</tool")] {
                let text = text.to_owned();
                answers.take(prompt, Event::Token { choice, id, text, logprob: None });
            }
            answers.take(prompt, Event::Finished {
                choice,
                reason: FinishReason::Length,
                ended_by: None,
                text: "_call>".to_owned(),
                timings: Timings::default(),
            });
        }
        for chunk in answers.chunks() {
            assert!(!chunk.is_empty() && !chunk.contains('\n'));
        }
    }
    assert!(answers.is_over());
    if job.stream.is_none() {
        assert!(answers.whole().is_ok_and(|text| text.starts_with('{')));
    }
}
