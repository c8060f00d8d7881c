//! Models of the Hugging Face Hub: what `owner/name` means in place of a folder, and what is seen of a pull.

use std::path::Path;
use std::time::Instant;

use bitnet_hub::{Error, Event, Found, Hub, ModelName, Settings, Verify};
use bitnet_model::Files;

use crate::failure::hinted;
use crate::progress::{Bar, human_bytes};
use crate::terminal::{Terminal, say};

/// The hub and the cache that the environment names.
pub(crate) fn open() -> anyhow::Result<Hub> {
    Ok(Hub::new(Settings::from_env().map_err(advised)?))
}

/// The error with its remedy as the hint.
pub(crate) fn advised(error: Error) -> anyhow::Error {
    hinted(error.to_string(), error.remedy())
}

/// The name of a model of the hub that `given` is; `None` where there is a folder or file of that name.
pub(crate) fn name(given: &Path) -> Option<ModelName> {
    let name = given.to_str().and_then(|text| text.parse().ok());
    name.filter(|_| !given.exists())
}

/// The files of `given`: a folder or file of that name, else a model of the hub, which is fetched where the cache does not have
/// it.
pub(crate) fn files(given: &Path) -> anyhow::Result<Files> {
    let Some(name) = name(given) else {
        return Ok(given.into());
    };
    let hub = open()?;
    let found = match hub.find(&name).map_err(advised)? {
        Some(found) => found,
        None => fetch(&hub, &name, Verify::Arriving).map_err(|error| match error {
            // A misspelled folder looks like a model of the hub.
            Error::NoModel { .. } | Error::Offline { .. } | Error::Unreachable { .. } => {
                hinted(format!("{error}; there is no such folder either"), error.remedy())
            }
            error => advised(error),
        })?,
    };
    Ok(found.path.into())
}

/// Pulls a model, and tells of it on stderr: a bar on a terminal, lines elsewhere.
pub(crate) fn fetch(hub: &Hub, name: &ModelName, verify: Verify) -> Result<Found, Error> {
    let (start, draws) = (Instant::now(), Terminal::detect(false).draws());
    let mut bar: Option<Bar> = None;
    let mut begun = None;
    let tell = |bar: &Option<Bar>, line: String| match bar {
        Some(bar) => bar.note(&line),
        None => say!("{line}"),
    };
    let found = hub.pull(name, verify, &mut |event| match event {
        Event::Begins { bytes, .. } => begun = Some(bytes),
        Event::Fetching { file, done, total } => {
            // Told when the first bytes come: before that the hub may refuse.
            if let Some(bytes) = begun.take() {
                let host = hub.settings().host();
                tell(
                    &bar,
                    format!("{name}: fetching {} from {host}", human_bytes(bytes)),
                );
            }
            match &bar {
                Some(bar) => {
                    bar.set(done, total);
                    bar.say(file);
                }
                None if draws => {
                    let new = Bar::bytes("fetching");
                    new.resume(done, total);
                    bar = Some(new);
                }
                None => {}
            }
        }
        Event::Checking { file } => {
            if let Some(bar) = &bar {
                bar.say(format!("checking {file}"));
            }
        }
        Event::Unchecked { file } => {
            tell(
                &bar,
                format!("warning: {name}: the hub has no digest of {file}; only its size was compared"),
            );
        }
        Event::Waiting { why, seconds } => {
            let seconds = seconds.map_or_else(String::new, |seconds| format!(" for {seconds} s"));
            tell(&bar, format!("{name}: waiting{seconds}: {why}"));
        }
        _ => {}
    })?;
    drop(bar);
    if found.fetched > 0 {
        let seconds = start.elapsed().as_secs_f64();
        let rate = human_bytes((found.fetched as f64 / seconds.max(1e-3)) as u64);
        say!(
            "{name}: fetched {} in {seconds:.1} s ({rate}/s)",
            human_bytes(found.fetched)
        );
    }
    Ok(found)
}
