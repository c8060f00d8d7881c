//! OpenAI's API over HTTP for BitNet b1.58 models.
#![forbid(unsafe_code)]

mod abort;
mod conn;
mod keys;
mod logs;
mod notify;
mod options;
mod process;
mod queue;
mod refusal;
mod signals;

mod bound;
mod metrics;
mod origin;
mod page;

mod exchange;
mod state;

mod body;
mod running;

mod gate;
mod info;
mod stream;

mod generate;
mod listen;

mod routes;

mod server;

pub use logs::{LogFormat, LogGuard, start_log};
pub use options::{Cors, ServeOptions};
pub use server::{Ended, Server, Serving};
pub use signals::Handle;
