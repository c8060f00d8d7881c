//! `bitnet serve`: OpenAI's API over HTTP.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bitnet_api::Served;
use bitnet_model::schedule::{ScheduleOptions, Stats, StepReport};
use bitnet_model::{ChatTemplate, Device, Engine, LoadOptions};
use bitnet_server::{Cors, Ended, LogFormat, ServeOptions, Server, Serving, start_log};
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::args::{self, CacheArgs, DeviceArgs, ModelArgs};
use crate::model;
use crate::terminal::{Terminal, say};

/// Serve a model over HTTP, as OpenAI's API
///
/// Any client of OpenAI's API works with the base URL http://127.0.0.1:8080/v1. Requests are answered side by side, each with the
/// text that it would get alone. SIGTERM and Ctrl-C let what runs go on to its end for --shutdown-timeout; the second one ends it.
/// The exit status is 0 when every answer was given to its end and 1 when some were cut.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Name of the model for clients; several, separated by commas, are names of the same model, and answers have the first
    /// [default: the model's name on the hub, or of its folder or file]
    #[arg(
        short,
        long,
        visible_alias = "served-model-name",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = filled
    )]
    alias: Vec<String>,
    /// Jinja chat template to use instead of the model's own
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    chat_template_file: Option<PathBuf>,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Compute every prompt anew, whatever earlier ones began with; changes speed, never the result
    #[arg(long, visible_alias = "no-enable-prefix-caching", help_heading = "Device")]
    no_cache_prompt: bool,
}

/// Where it listens, and what is there.
#[derive(Debug, clap::Args)]
struct HttpArgs {
    /// Name or address to listen at, 0.0.0.0 for all of this machine; a path that ends in .sock is a Unix socket
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", value_parser = host, help_heading = "HTTP")]
    host: String,
    /// Port; 0 takes a free one, which is printed
    #[arg(long, value_name = "PORT", default_value = "8080", help_heading = "HTTP")]
    port: u16,
    /// What stands before every path, such as /llm
    #[arg(long, value_name = "PREFIX", value_parser = prefix, help_heading = "HTTP")]
    api_prefix: Option<String>,
    /// Threads for HTTP, JSON and templates
    #[arg(long, value_name = "N", default_value = "2", value_parser = args::count(1, MAX_THREADS), help_heading = "HTTP")]
    threads_http: usize,
    /// Leave /metrics out
    #[arg(long, help_heading = "HTTP")]
    no_metrics: bool,
    /// Leave /slots out
    #[arg(long, help_heading = "HTTP")]
    no_slots: bool,
    /// Leave the chat page out
    #[arg(long, visible_alias = "no-webui", help_heading = "HTTP")]
    no_ui: bool,
    /// Seconds of silence after which a stream shows that it lives
    #[arg(long, value_name = "S", default_value = "15", value_parser = seconds, help_heading = "HTTP")]
    sse_ping_interval: Duration,
}

/// Who may use it.
#[derive(Debug, clap::Args)]
struct AccessArgs {
    /// Key that clients must send; may be repeated, or several separated by commas
    #[arg(
        long,
        value_name = "KEY",
        value_delimiter = ',',
        value_parser = filled,
        hide_env_values = true,
        help_heading = "Access"
    )]
    api_key: Vec<String>,
    /// File with more keys, one a line; read again on SIGHUP
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from), help_heading = "Access")]
    api_key_file: Option<PathBuf>,
    /// Key that /metrics asks for [default: none is needed there]
    #[arg(long, value_name = "KEY", value_parser = filled, hide_env_values = true, help_heading = "Access")]
    metrics_key: Option<String>,
    /// Web pages that may read answers: localhost, * for all, or origins such as `https://chat.example` separated by commas
    #[arg(long, value_name = "ORIGINS", default_value = "localhost", value_parser = cors, help_heading = "Access")]
    cors_origins: Cors,
}

/// What it holds at most.
#[derive(Debug, clap::Args)]
struct LimitArgs {
    /// Answers to compute at a time (also -np); others wait [default: 64 on a GPU, 4 on a processor]
    #[arg(long, visible_alias = "max-num-seqs", value_name = "N", value_parser = args::count(1, args::MAX_SEQUENCES), help_heading = "Limits")]
    parallel: Option<usize>,
    /// Most answers that wait; a request that finds as many gets 429 [default: 64 and 4 for each answer at a time]
    #[arg(
        long,
        visible_alias = "max-num-queued-reqs",
        value_name = "N",
        help_heading = "Limits"
    )]
    max_queue: Option<usize>,
    /// Seconds that a request waits for its turn before it gets 429
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds, help_heading = "Limits")]
    max_queue_seconds: Duration,
    /// Most prompt tokens that wait, such as 100k [default: any number]
    #[arg(long, visible_alias = "max-num-queued-tokens", value_name = "N", value_parser = args::tokens, help_heading = "Limits")]
    max_queued_tokens: Option<usize>,
    /// Most answers that one API key has under way, where there are several keys [default: any number]
    #[arg(long, value_name = "N", value_parser = args::at_least_one, help_heading = "Limits")]
    max_per_key: Option<usize>,
    /// Most answers to one prompt (`n`)
    #[arg(long, value_name = "N", default_value = "16", value_parser = args::at_least_one, help_heading = "Limits")]
    max_n: usize,
    /// Whose turn it is: fcfs, as they came, or priority, the lower number in the request's `priority` first
    #[arg(long, value_name = "POLICY", default_value = "fcfs", value_parser = args::one_of(&POLICIES), help_heading = "Limits")]
    scheduling_policy: Policy,
    /// Most bytes of a request
    #[arg(long, value_name = "N", default_value = "4194304", value_parser = args::at_least_one, help_heading = "Limits")]
    max_body_bytes: usize,
    /// Most connections at a time; the one that has been silent for the longest makes room
    #[arg(long, value_name = "N", default_value = "1024", value_parser = args::at_least_one, help_heading = "Limits")]
    max_connections: usize,
    /// Seconds that an answer may take (also -to) [default: any number]
    #[arg(long, visible_alias = "timeout", value_name = "S", value_parser = seconds, help_heading = "Limits")]
    request_timeout: Option<Duration>,
    /// Seconds that an answer waits for a client that does not read
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds, help_heading = "Limits")]
    slow_client_timeout: Duration,
    /// Seconds without a step, although work waits, after which /health says so
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds, help_heading = "Limits")]
    engine_timeout: Duration,
    /// Seconds that answers may go on after SIGTERM
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds, help_heading = "Limits")]
    shutdown_timeout: Duration,
    /// Seconds to go on listening, at least, after SIGTERM, while whoever sends requests learns of it
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds, help_heading = "Limits")]
    shutdown_delay: Duration,
}

/// What it writes down.
#[derive(Debug, clap::Args)]
struct LogArgs {
    /// Lines of the log: text, or json for an object each
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = args::one_of(&FORMATS), help_heading = "Log")]
    log_format: LogFormat,
    /// Log the texts of requests too
    #[arg(long, help_heading = "Log")]
    log_prompts: bool,
    /// Log more, for whoever looks for a fault; the variable RUST_LOG outranks it
    #[arg(short, long, help_heading = "Log")]
    verbose: bool,
}

/// Most threads for HTTP, which wait most of the time.
const MAX_THREADS: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Fcfs,
    Priority,
}

const POLICIES: [(&str, Policy); 2] = [("fcfs", Policy::Fcfs), ("priority", Policy::Priority)];
const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// Runs `bitnet serve`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    allow_many_files();
    let mut options = args.device.options(args.cache.ctx_size, args.cache.kv_type);
    options.kv_memory = args.cache.kv_memory.unwrap_or_default();
    options.n_seqs = args.limits.parallel.unwrap_or_else(|| default_slots(&options));
    let names = args.names();
    let server = Server::bind(args.serve_options(&names, options.n_seqs))?;
    let _log = start_log(args.log.log_format, args.log.verbose)
        .map_err(|e| anyhow::anyhow!("cannot write a log: {e}"))?;
    // A log of JSON has no other lines.
    match args.log.log_format {
        LogFormat::Text => {
            args.model.introduce();
            say!("listening at {}", server.address());
            for warning in server.warnings() {
                say!("warning: {warning}");
            }
        }
        LogFormat::Json => server.announce(),
    }
    server.take_signals()?;
    let load = args.load(options, names, server.observer());
    match server.run(load)? {
        Ended::Drained => Ok(ExitCode::SUCCESS),
        Ended::Cut => Ok(ExitCode::FAILURE),
        Ended::Lost(why) => Err(anyhow::anyhow!(why)),
    }
}

impl Args {
    fn names(&self) -> Vec<String> {
        if !self.alias.is_empty() {
            return self.alias.clone();
        }
        vec![self.model.short_name()]
    }

    fn serve_options(&self, names: &[String], slots: usize) -> ServeOptions {
        let (http, access, limits) = (&self.http, &self.access, &self.limits);
        ServeOptions {
            host: http.host.clone(),
            port: http.port,
            api_prefix: http.api_prefix.clone().unwrap_or_default(),
            model: names.first().cloned().unwrap_or_default(),
            keys: access.api_key.clone(),
            key_file: access.api_key_file.clone(),
            metrics_key: access.metrics_key.clone(),
            cors: access.cors_origins.clone(),
            threads: http.threads_http,
            slots,
            max_queue: limits.max_queue.unwrap_or(4 * slots + 64),
            max_queue_time: limits.max_queue_seconds,
            max_queued_tokens: limits.max_queued_tokens,
            max_per_key: limits.max_per_key,
            request_timeout: limits.request_timeout.filter(|time| !time.is_zero()),
            ping_interval: http.sse_ping_interval,
            slow_client_timeout: limits.slow_client_timeout,
            shutdown_timeout: limits.shutdown_timeout,
            shutdown_delay: limits.shutdown_delay,
            engine_timeout: limits.engine_timeout,
            max_body: limits.max_body_bytes,
            max_connections: limits.max_connections,
            has_metrics: !http.no_metrics,
            has_slots: !http.no_slots,
            has_page: !http.no_ui,
            shares_prompts: !self.no_cache_prompt,
            logs_prompts: self.log.log_prompts,
        }
    }

    /// What loads the model, on a thread of the server.
    fn load(
        &self,
        options: LoadOptions,
        names: Vec<String>,
        observer: impl FnMut(&StepReport, &Stats) + Send + 'static,
    ) -> impl FnOnce() -> anyhow::Result<Serving> + Send + 'static {
        let model = self.model.clone();
        let template = self.chat_template_file.clone();
        let (max_n, policy) = (self.limits.max_n, self.limits.scheduling_policy);
        move || {
            let files = model.files()?;
            let mut model = model::load(&files, options, Terminal::detect(false))?;
            model::require_text(&model)?;
            if let Some(path) = &template {
                let template = ChatTemplate::from_file(path, model.files())?;
                model.set_chat_template(template);
            }
            check_template(&model);
            let mut served = Served::new(&model, names)?;
            served.max_n = max_n;
            served.has_priorities = policy == Policy::Priority;
            let engine = Engine::start_observed(model, ScheduleOptions::default(), observer)?;
            Ok(Serving { engine, served })
        }
    }
}

/// Says what requests with messages will meet. Others need no template, so that it is no error here.
fn check_template(model: &bitnet_model::Model) {
    match model.chat_template() {
        None => say!(
            "warning: the model has no chat template: /v1/chat/completions refuses messages; --chat-template-file names one"
        ),
        Some(template) => match template.check() {
            Ok(()) => model::warn_built_in(template),
            Err(error) => say!("warning: {error}"),
        },
    }
}

/// As many answers at a time as the device is fast with.
fn default_slots(options: &LoadOptions) -> usize {
    match options.chosen_device() {
        Device::Cuda(_) => 64,
        Device::Auto | Device::Cpu => 4,
    }
}

/// Connections are files to the system, which allows programs fewer than it could.
#[cfg(unix)]
fn allow_many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Where it does not work, the server does with fewer.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536).max(soft), hard);
    }
}

#[cfg(not(unix))]
fn allow_many_files() {}

pub(crate) fn filled(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it is empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

/// A host without the port, which has a flag of its own.
pub(crate) fn host(text: &str) -> Result<String, String> {
    let host = filled(text)?;
    let is_path = host.contains('/') && !host.contains("://");
    let bare = host.split_once("://").map_or(&*host, |(_, rest)| rest);
    let bare = if is_path { bare } else { bare.trim_end_matches('/') };
    let (name, port) = match bare.rsplit_once(':') {
        // An address of IPv6 has colons of its own.
        Some((name, port)) if !is_path && (!name.contains(':') || name.ends_with(']')) => (name, Some(port)),
        _ => (bare, None),
    };
    match port.map(str::parse::<u16>) {
        Some(Ok(port)) => Err(format!("host and port are separate: --host {name} --port {port}")),
        Some(Err(_)) => Err("it is a host alone, such as 127.0.0.1; --port names the port".to_owned()),
        None if bare != host => Err(format!("it is a host alone: --host {name}")),
        None => Ok(host),
    }
}

pub(crate) fn prefix(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    let is_plain = path
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b));
    match path.is_empty() || (path.starts_with('/') && !path.contains("//") && is_plain) {
        true => Ok(path.to_owned()),
        false => Err("expected a path such as /llm".to_owned()),
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "expected seconds such as 30 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        // A sleep of more than a century is no sleep.
        .filter(|time| time.as_secs() < 3_000_000_000)
        .ok_or_else(|| "expected seconds such as 30 or 0.5".to_owned())
}

fn cors(text: &str) -> Result<Cors, String> {
    match text.trim() {
        "" => Err("expected localhost, * or origins such as https://chat.example".to_owned()),
        "localhost" => Ok(Cors::Localhost),
        "*" => Ok(Cors::Any),
        list => list
            .split(',')
            .map(|origin| origin.trim().trim_end_matches('/'))
            .map(|origin| match origin.split_once("://") {
                Some((scheme, host)) if !scheme.is_empty() && !host.is_empty() && !host.contains('/') => {
                    Ok(origin.to_owned())
                }
                _ => Err(format!("`{origin}` is no origin such as https://chat.example")),
            })
            .collect::<Result<_, _>>()
            .map(Cors::List),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "-1", "inf", "nan", "1e300", "5s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert_eq!(cors("*"), Ok(Cors::Any));
        let list = vec!["https://a.example".to_owned(), "http://b:1".to_owned()];
        assert_eq!(cors("https://a.example/, http://b:1"), Ok(Cors::List(list)));
        for bad in ["", "a.example", "https://", "https://a/b", "*,https://a"] {
            assert!(cors(bad).is_err(), "{bad}");
        }
        for good in [
            "localhost",
            "0.0.0.0",
            "::",
            "::1",
            "[::1]",
            "/run/a:1.sock",
            "a.sock",
        ] {
            assert_eq!(host(good).as_deref(), Ok(good));
        }
        for (bad, remedy) in [
            ("127.0.0.1:9000", "--host 127.0.0.1 --port 9000"),
            ("http://localhost:80/", "--host localhost --port 80"),
            ("http://localhost", "--host localhost"),
            ("[::1]:5", "--host [::1] --port 5"),
            ("a:b", "a host alone"),
            (" ", "empty"),
        ] {
            assert!(host(bad).unwrap_err().contains(remedy), "{bad}");
        }
        for (given, read) in [("/llm/", "/llm"), ("/a/b", "/a/b"), ("/", ""), ("", "")] {
            assert_eq!(prefix(given).as_deref(), Ok(read));
        }
        for bad in ["llm", "//", "/a b", "/a?b"] {
            assert!(prefix(bad).is_err() || bad == "//", "{bad}");
        }
    }
}
