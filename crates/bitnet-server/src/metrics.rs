//! What a server counts and times, under vLLM's names where those have one: gateways, autoscalers and dashboards know them.

use std::sync::Arc;
use std::time::SystemTime;

use bitnet_model::schedule::{Stats, StepKind, StepReport};
use bitnet_model::{Health, KvType, Spec};
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

use crate::abort::Abort;
use crate::process;

/// Seconds of whole requests, to the first token and to its turn: vLLM's.
const REQUEST_SECONDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between tokens. They begin at 0.1 ms, since a step of a small model takes less than one.
const TOKEN_SECONDS: [f64; 20] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
    0.75, 1.0, 2.5, 10.0,
];
/// Tokens of a prompt, an answer or a step.
const TOKENS: [f64; 18] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
    32768.0, 65536.0, 131_072.0,
];

/// The counter of refusals, and its help text. Its series appear with the first refusal of their kind, the usual ones at once.
const REJECTED: (&str, &str) = (
    "bitnet_requests_rejected_total",
    "Requests refused, by the code of the error.",
);

/// Which buckets a histogram has.
const BUCKETS: [(&str, &[f64]); 16] = [
    ("vllm:time_to_first_token_seconds", &REQUEST_SECONDS),
    ("vllm:inter_token_latency_seconds", &TOKEN_SECONDS),
    ("vllm:time_per_output_token_seconds", &TOKEN_SECONDS),
    ("vllm:request_time_per_output_token_seconds", &TOKEN_SECONDS),
    ("vllm:e2e_request_latency_seconds", &REQUEST_SECONDS),
    ("vllm:request_queue_time_seconds", &REQUEST_SECONDS),
    ("vllm:request_prefill_time_seconds", &REQUEST_SECONDS),
    ("vllm:request_decode_time_seconds", &REQUEST_SECONDS),
    ("vllm:request_inference_time_seconds", &REQUEST_SECONDS),
    ("vllm:request_prompt_tokens", &TOKENS),
    ("vllm:request_generation_tokens", &TOKENS),
    ("vllm:iteration_tokens_total", &TOKENS),
    ("bitnet_step_seconds", &TOKEN_SECONDS),
    ("bitnet_batch_tokens", &TOKENS),
    ("bitnet_request_parse_seconds", &TOKEN_SECONDS),
    ("bitnet_grammar_compile_seconds", &TOKEN_SECONDS),
];

/// The element type of the cache, and its bytes: keys and values, each (heads, head), for every token and layer. A scale of f32
/// stands beside each head of int8.
fn cache(spec: &Spec) -> (&'static str, u64) {
    let config = &spec.config;
    let (name, head_bytes) = match spec.kv_type {
        KvType::Bf16 => ("bfloat16", 2 * config.head_dim),
        KvType::F32 => ("float32", 4 * config.head_dim),
        KvType::Int8 => ("int8", config.head_dim + 4),
    };
    let token = (2 * config.n_layers * config.n_kv_heads * head_bytes) as u64;
    (name, token.saturating_mul((spec.page * spec.n_pages) as u64))
}

/// All metrics.
pub(crate) struct Meters {
    recorder: PrometheusRecorder,
    model: String,
    waiting: Gauge,
    running: Gauge,
    usage: Gauge,
    last_step: Gauge,
    set_back: Counter,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generation_tokens: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    success: [Counter; 3],
    aborted: [Counter; 5],
    pub(crate) first_token: Histogram,
    pub(crate) inter_token: [Histogram; 2],
    pub(crate) per_token: Histogram,
    pub(crate) whole: Histogram,
    pub(crate) queued: Histogram,
    pub(crate) prefill: Histogram,
    pub(crate) decode: Histogram,
    pub(crate) inference: Histogram,
    pub(crate) request_prompt: Histogram,
    pub(crate) request_generation: Histogram,
    pub(crate) parse: Histogram,
    pub(crate) grammar: Histogram,
    step_tokens: [Histogram; 2],
    prefill_step: Histogram,
    decode_step: Histogram,
    mixed_step: Histogram,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

const METADATA: Metadata<'static> = Metadata::new("bitnet_server", Level::INFO, None);

impl Meters {
    /// Those of a server of `model`, all at zero.
    pub(crate) fn new(model: &str) -> Self {
        let builder = BUCKETS
            .iter()
            .fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
                builder
                    .set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
                    .expect("no list of buckets is empty")
            });
        let make = Make {
            recorder: builder.build_recorder(),
            model: vec![
                Label::new("model_name", model.to_owned()),
                Label::from_static_parts("engine", "0"),
            ],
        };
        let seconds = |name, help| make.histogram(name, &[], help);
        let step = |kind| {
            make.histogram(
                "bitnet_step_seconds",
                &[("kind", kind)],
                "Time of a step of the engine.",
            )
        };
        let success = |reason| {
            let help = "Requests answered to their end.";
            make.counter("vllm:request_success_total", &[("finished_reason", reason)], help)
        };
        for cause in ["queue_full", "queue_timeout", "loading", "shutting_down"] {
            let _ = make.counter(REJECTED.0, &[("cause", cause)], REJECTED.1);
        }
        // No request is both aborted and answered; the series is there for dashboards that add the reasons up.
        let _ = success("abort");
        Self {
            waiting: make.gauge("vllm:num_requests_waiting", "Answers that wait for their turn."),
            running: make.gauge("vllm:num_requests_running", "Answers that are computed."),
            usage: make.gauge(
                "vllm:kv_cache_usage_perc",
                "Share of the cache that answers hold, 1 is all; what is kept for later prompts counts as free.",
            ),
            last_step: make.gauge(
                "bitnet_engine_last_step_timestamp_seconds",
                "When the engine made its last step.",
            ),
            set_back: make.counter("vllm:num_preemptions_total", &[], "Answers set back for want of cache."),
            prompt_tokens: make.counter("vllm:prompt_tokens_total", &[], "Tokens of prompts."),
            generation_tokens: make.counter("vllm:generation_tokens_total", &[], "Tokens of answers."),
            prefix_queries: make.counter("vllm:prefix_cache_queries_total", &[], "Prompt tokens looked for in the cache."),
            prefix_hits: make.counter("vllm:prefix_cache_hits_total", &[], "Prompt tokens found in the cache."),
            success: ["stop", "length", "tool_calls"].map(success),
            aborted: Abort::ALL.map(|abort| {
                let help = "Requests begun and not answered to their end.";
                make.counter("bitnet_requests_aborted_total", &[("cause", abort.as_str())], help)
            }),
            first_token: seconds("vllm:time_to_first_token_seconds", "Time from a request to its first token."),
            inter_token: [
                seconds("vllm:inter_token_latency_seconds", "Time between tokens of an answer."),
                seconds("vllm:time_per_output_token_seconds", "Time between tokens of an answer, by its older name."),
            ],
            per_token: seconds(
                "vllm:request_time_per_output_token_seconds",
                "Mean time between tokens of a request.",
            ),
            whole: seconds("vllm:e2e_request_latency_seconds", "Time from a request to the end of its answer."),
            queued: seconds("vllm:request_queue_time_seconds", "Time from a request to its turn."),
            prefill: seconds("vllm:request_prefill_time_seconds", "Time from its turn to the first token."),
            decode: seconds("vllm:request_decode_time_seconds", "Time from the first token to the last."),
            inference: seconds("vllm:request_inference_time_seconds", "Time from its turn to the last token."),
            request_prompt: seconds("vllm:request_prompt_tokens", "Prompt tokens of a request."),
            request_generation: seconds("vllm:request_generation_tokens", "Answer tokens of a request."),
            parse: seconds(
                "bitnet_request_parse_seconds",
                "Time to read a request: JSON, template, tokens, grammar.",
            ),
            grammar: seconds(
                "bitnet_grammar_compile_seconds",
                "Time to compile the grammar that an answer must obey.",
            ),
            step_tokens: [
                seconds("vllm:iteration_tokens_total", "Tokens of a step of the engine."),
                seconds("bitnet_batch_tokens", "Tokens of a step of the engine."),
            ],
            prefill_step: step(StepKind::Prefill.as_str()),
            decode_step: step(StepKind::Decode.as_str()),
            mixed_step: step(StepKind::Mixed.as_str()),
            model: model.to_owned(),
            recorder: make.recorder,
        }
    }

    /// Says what runs the model, once it is there.
    pub(crate) fn describe(&self, spec: &Spec, shares_prompts: bool) {
        let (page, pages) = (spec.page.to_string(), spec.n_pages.to_string());
        let (cache_type, cache_bytes) = cache(spec);
        // `cpu (avx512-vnni, 2 threads)`
        let simd = spec
            .name
            .strip_prefix("cpu (")
            .and_then(|rest| rest.split(',').next());
        let make = Make {
            recorder: &self.recorder,
            model: vec![
                Label::new("model_name", self.model.clone()),
                Label::from_static_parts("engine", "0"),
            ],
        };
        let info = [
            ("block_size", page.as_str()),
            ("num_gpu_blocks", &pages),
            ("cache_dtype", cache_type),
            (
                "enable_prefix_caching",
                if shares_prompts { "True" } else { "False" },
            ),
        ];
        make.labelled_gauge("vllm:cache_config_info", &info, "How the cache is made.")
            .set(1.0);
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("commit", option_env!("BITNET_COMMIT").unwrap_or("unknown")),
            ("device", &spec.name),
            ("simd", simd.unwrap_or("none")),
        ];
        make.labelled_gauge("bitnet_build_info", &build, "What runs here.")
            .set(1.0);
        make.gauge("bitnet_weights_bytes", "Bytes of weights and scratch.")
            .set(spec.memory_bytes.saturating_sub(cache_bytes) as f64);
        make.gauge("bitnet_cache_bytes", "Bytes of the cache of keys and values.")
            .set(cache_bytes as f64);
    }

    /// A request was answered to its end.
    pub(crate) fn succeeded(&self, reason: &str) {
        let at = match reason {
            "length" => 1,
            "tool_calls" => 2,
            _ => 0,
        };
        self.success[at].increment(1);
    }

    /// A request was begun and not answered to its end.
    pub(crate) fn was_aborted(&self, cause: Abort) {
        if let Some(at) = Abort::ALL.iter().position(|one| *one == cause) {
            self.aborted[at].increment(1);
        }
    }

    /// A request was refused.
    pub(crate) fn was_rejected(&self, cause: &'static str) {
        let make = Make {
            recorder: &self.recorder,
            model: Vec::new(),
        };
        make.counter(REJECTED.0, &[("cause", cause)], REJECTED.1)
            .increment(1);
    }

    /// Lines of the log that could not be written.
    pub(crate) fn log_lines_lost(&self, n: u64) {
        let help = "Lines of the log that could not be written.";
        let make = Make {
            recorder: &self.recorder,
            model: Vec::new(),
        };
        make.counter("bitnet_log_lines_lost_total", &[], help).absolute(n);
    }

    /// What takes the engine's reports, on its thread.
    pub(crate) fn observer(self: Arc<Self>) -> impl FnMut(&StepReport, &Stats) + Send + 'static {
        move |step, _| {
            self.step_tokens
                .iter()
                .for_each(|one| one.record(step.batch as f64));
            let of_kind = match step.kind() {
                StepKind::Prefill => &self.prefill_step,
                StepKind::Decode => &self.decode_step,
                StepKind::Mixed => &self.mixed_step,
            };
            of_kind.record(step.time);
        }
    }

    /// The engine's counts after its last step.
    pub(crate) fn set(&self, stats: &Stats, health: &Health) {
        self.waiting.set(stats.waiting as f64);
        self.running.set(stats.running as f64);
        self.usage
            .set(stats.pages_held as f64 / stats.pages.max(1) as f64);
        self.set_back.absolute(stats.set_back);
        self.prefix_queries.absolute(stats.queried_tokens);
        self.prefix_hits.absolute(stats.cached_tokens);
        let ago = health.last_step.map(|at| at.elapsed());
        let at = ago.and_then(|ago| {
            SystemTime::now()
                .checked_sub(ago)?
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()
        });
        self.last_step.set(at.map_or(0.0, |at| at.as_secs_f64()));
    }

    /// Sorts what was recorded into buckets. Until then it takes memory: somebody must do so every few seconds.
    pub(crate) fn tidy(&self) {
        self.recorder.handle().run_upkeep();
    }

    /// Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        let mut text = self.recorder.handle().render();
        process::describe(&mut text);
        text
    }
}

/// Makes metrics that have a help text.
struct Make<R> {
    recorder: R,
    /// Labels of those that begin with `vllm:`.
    model: Vec<Label>,
}

impl<R: std::borrow::Borrow<PrometheusRecorder>> Make<R> {
    fn key(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Key {
        let of_model = if name.starts_with("vllm:") {
            &self.model[..]
        } else {
            &[]
        };
        let own = labels
            .iter()
            .map(|(name, value)| Label::new(*name, (*value).to_owned()));
        Key::from_parts(name, of_model.iter().cloned().chain(own).collect::<Vec<_>>())
    }

    fn counter(&self, name: &'static str, labels: &[(&'static str, &str)], help: &'static str) -> Counter {
        let recorder = self.recorder.borrow();
        recorder.describe_counter(name.into(), None, help.into());
        recorder.register_counter(&self.key(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.labelled_gauge(name, &[], help)
    }

    fn labelled_gauge(
        &self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        help: &'static str,
    ) -> Gauge {
        let recorder = self.recorder.borrow();
        recorder.describe_gauge(name.into(), None, help.into());
        recorder.register_gauge(&self.key(name, labels), &METADATA)
    }

    fn histogram(
        &self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        help: &'static str,
    ) -> Histogram {
        let recorder = self.recorder.borrow();
        recorder.describe_histogram(name.into(), None, help.into());
        recorder.register_histogram(&self.key(name, labels), &METADATA)
    }
}
