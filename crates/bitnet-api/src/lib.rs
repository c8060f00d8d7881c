//! OpenAI's requests and answers for BitNet b1.58 models, as data: no HTTP, no threads, no clock but for `created`.
//!
//! [`parse`] makes JSON of a body, [`chat`] and [`completion`] make a [`Job`] of it, whose requests go to a scheduler; what that tells
//! goes into [`Answers`], and comes out as the JSON of OpenAI's API. Every field is described once, in a table that checks requests and
//! makes openapi.json.
//!
//! ```
//! use bitnet_api::{Answers, Served, chat, parse};
//! use bitnet_model::{Device, Engine, Model};
//!
//! # let folder = "../bitnet-cli/demo-model";
//! let model = Model::load(folder, Device::Cpu)?;
//! let served = Served::new(&model, vec!["demo".to_owned()])?;
//! let engine = Engine::start(model, Default::default())?;
//! let body = parse(br#"{"messages": [{"role": "user", "content": "What is 17 + 25?"}]}"#)?;
//! let mut job = chat(&served, body)?;
//! let mut answers = Answers::new(&served, &job, "1");
//! for (i, request) in job.requests.drain(..).enumerate() {
//!     for event in engine.client().stream(request)? {
//!         answers.take(i, event);
//!     }
//! }
//! assert!(answers.whole()?.contains(r#""content":"17 + 25 = 42""#));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod error;

mod body;
mod fields;
mod served;

mod prompts;
mod tools;

mod calls;
mod logprobs;
mod messages;
mod options;

mod form;
mod openapi;
mod structured;
mod tokens;

mod job;

mod parts;

mod answers;

pub use answers::Answers;
pub use body::parse;
pub use error::ApiError;
pub use fields::Endpoint;
pub use job::{Job, StreamOptions, chat, completion};
pub use openapi::openapi;
pub use served::Served;
pub use structured::is_constrained;
pub use tokens::{apply_template, detokenize, tokenize};
