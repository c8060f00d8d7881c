//! Models from the Hugging Face Hub, by name: found in the cache of this machine, or fetched into it.
//!
//! The cache is the one that Python's `huggingface_hub` uses, in its layout and with its locks: what either fetched, both find.
//! Only the files that running a model needs are fetched, and every one is compared with the digest that the hub announces.
//! [`Hub::pull`], and [`Hub::get`] where a model is not in the cache, open connections; nothing else does.
//!
//! ```no_run
//! use bitnet_hub::{Hub, ModelName, Settings};
//!
//! let hub = Hub::new(Settings::from_env()?);
//! let name: ModelName = "microsoft/bitnet-b1.58-2B-4T".parse()?;
//! let model = hub.get(&name, &mut |_| {})?;
//! println!("{}", model.path.display());
//! # Ok::<(), bitnet_hub::Error>(())
//! ```
//!
//! A file may use only files whose `mod` line stands above its own, so the list below is also the reading order.
#![forbid(unsafe_code)]

mod error;

mod name;
mod settings;

mod choose;
mod digest;
mod event;

mod cache;
mod client;

mod fetch;

mod hub;

mod inventory;

mod remove;

pub use choose::Format;
pub use error::{Error, Result};
pub use event::Event;
pub use hub::{Found, Hub, Verify};
pub use inventory::Cached;
pub use name::ModelName;
pub use remove::Removal;
pub use settings::{Secret, Settings};
