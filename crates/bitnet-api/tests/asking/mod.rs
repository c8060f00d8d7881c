//! The demo model behind the API, for tests.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_api::{Answers, ApiError, Job, Served};
use bitnet_model::{Client, Device, Engine, Model};
use serde_json::{Map, Value};

pub(crate) struct Server {
    pub(crate) served: Served,
    pub(crate) client: Client,
    _engine: Engine,
}

pub(crate) fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let model = Model::load("../bitnet-cli/demo-model", Device::Cpu).unwrap();
        let served = Served::new(&model, vec!["demo".to_owned(), "other".to_owned()]).unwrap();
        let engine = Engine::start(model, Default::default()).unwrap();
        Server {
            served,
            client: engine.client(),
            _engine: engine,
        }
    })
}

fn object(body: Value) -> Map<String, Value> {
    // As the server has it: from bytes.
    bitnet_api::parse(body.to_string().as_bytes()).unwrap()
}

pub(crate) fn job(endpoint: &str, body: Value) -> Result<Job, ApiError> {
    match endpoint {
        "chat" => bitnet_api::chat(&server().served, object(body)),
        _ => bitnet_api::completion(&server().served, object(body)),
    }
}

fn answers(job: &Job) -> Answers {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    Answers::new(
        &server().served,
        job,
        &NEXT.fetch_add(1, Ordering::Relaxed).to_string(),
    )
}

/// The answer in one piece, or why there is none.
pub(crate) fn ask(endpoint: &str, body: Value) -> Result<Value, ApiError> {
    let served = &server().served;
    match endpoint {
        "tokenize" => return bitnet_api::tokenize(served, object(body)),
        "detokenize" => return bitnet_api::detokenize(served, object(body)),
        "apply_template" => return bitnet_api::apply_template(served, object(body)),
        _ => {}
    }
    let mut job = job(endpoint, body)?;
    assert_eq!(job.stream, None);
    let mut answers = answers(&job);
    for (i, request) in job.requests.drain(..).enumerate() {
        for event in server().client.stream(request).map_err(|e| ApiError::from(&e))? {
            answers.take(i, event);
            assert!(answers.chunks().is_empty());
        }
    }
    assert!(answers.is_over());
    answers.whole().map(|text| serde_json::from_str(&text).unwrap())
}

pub(crate) fn chat(body: Value) -> Value {
    ask("chat", body).unwrap()
}

pub(crate) fn completion(body: Value) -> Value {
    ask("completion", body).unwrap()
}

/// The error object of a request that is refused with 400 or 404.
pub(crate) fn refused(endpoint: &str, body: Value) -> Value {
    let shown = body.to_string();
    let error = ask(endpoint, body)
        .err()
        .unwrap_or_else(|| panic!("{shown} was answered"));
    assert!(matches!(error.status, 400 | 404), "{shown}: {error:?}");
    assert!(error.message.len() < 1000, "{shown}: {error:?}");
    error.body()["error"].clone()
}

/// The events of a stream, one by one as tokens come.
pub(crate) fn events(endpoint: &str, body: Value) -> Vec<Value> {
    let mut job = job(endpoint, body).unwrap();
    assert!(job.stream.is_some());
    let mut answers = answers(&job);
    let mut chunks = Vec::new();
    for (i, request) in job.requests.drain(..).enumerate() {
        for event in server().client.stream(request).unwrap() {
            answers.take(i, event);
            for chunk in answers.chunks() {
                assert!(!chunk.contains('\n'));
                chunks.push(serde_json::from_str(&chunk).unwrap());
            }
        }
    }
    assert!(answers.is_over() && answers.failure().is_none());
    chunks
}
