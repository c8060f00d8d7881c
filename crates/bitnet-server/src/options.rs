//! What a server is started with.

use std::path::PathBuf;
use std::time::Duration;

/// Which web pages of other origins may read answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// Those of this machine: localhost, 127.0.0.1 and `[::1]`, at any port.
    #[default]
    Localhost,
    /// Every page.
    Any,
    /// Those of these origins, such as `https://chat.example`.
    List(Vec<String>),
}

/// How a server listens, whom it lets in, and what it holds at most.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Name or address to listen at; one that ends in `.sock` is the path of a Unix socket.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// What stands before every path, such as `/llm`; may be empty.
    pub api_prefix: String,
    /// The model's name in metrics: the first of those that requests may name.
    pub model: String,
    /// Keys that clients may have; without any, no key is asked for.
    pub keys: Vec<String>,
    /// File with more keys, one a line; read again on SIGHUP.
    pub key_file: Option<PathBuf>,
    /// Key that `/metrics` asks for.
    pub metrics_key: Option<String>,
    /// Which web pages may read answers.
    pub cors: Cors,
    /// Threads for HTTP, JSON and templates.
    pub threads: usize,
    /// Answers that are computed at a time; the queue begins behind them.
    pub slots: usize,
    /// Most answers that wait for a slot; a request that finds as many is refused with 429.
    pub max_queue: usize,
    /// Longest time that a request waits for its turn.
    pub max_queue_time: Duration,
    /// Most prompt tokens that wait.
    pub max_queued_tokens: Option<usize>,
    /// Most answers that one key has under way, where there are several keys.
    pub max_per_key: Option<usize>,
    /// Longest time that a request takes, if there is one.
    pub request_timeout: Option<Duration>,
    /// How long a stream may be silent before a comment shows that it lives.
    pub ping_interval: Duration,
    /// How long an answer waits for a client that does not read.
    pub slow_client_timeout: Duration,
    /// How long answers may go on after the server was told to stop.
    pub shutdown_timeout: Duration,
    /// How long it goes on listening, at least, after it was told to stop.
    pub shutdown_delay: Duration,
    /// How long the engine may make no step although work waits before the server says that it is ill.
    pub engine_timeout: Duration,
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// Most connections at a time.
    pub max_connections: usize,
    /// Whether `/metrics` is there.
    pub has_metrics: bool,
    /// Whether `/slots` is there.
    pub has_slots: bool,
    /// Whether `/` is the chat page.
    pub has_page: bool,
    /// Whether prompts find what earlier ones computed.
    pub shares_prompts: bool,
    /// Whether the log has the prompts' texts.
    pub logs_prompts: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            api_prefix: String::new(),
            model: String::new(),
            keys: Vec::new(),
            key_file: None,
            metrics_key: None,
            cors: Cors::Localhost,
            threads: 2,
            slots: 4,
            max_queue: 80,
            max_queue_time: Duration::from_secs(30),
            max_queued_tokens: None,
            max_per_key: None,
            request_timeout: None,
            ping_interval: Duration::from_secs(15),
            slow_client_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(30),
            shutdown_delay: Duration::ZERO,
            engine_timeout: Duration::from_secs(60),
            max_body: 4 << 20,
            max_connections: 1024,
            has_metrics: true,
            has_slots: true,
            has_page: true,
            shares_prompts: true,
            logs_prompts: false,
        }
    }
}
