//! A request and its answer, from the first byte to the last: its name, what it did, and the line of the log that says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::http::{HeaderMap, Method};

use crate::abort::Abort;
use crate::conn::Conn;
use crate::metrics::Meters;

/// A request and its answer. The log line is written when nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// `X-Request-Id` of both.
    pub(crate) id: String,
    pub(crate) began: Instant,
    method: Method,
    path: String,
    traceparent: Option<String>,
    meters: Arc<Meters>,
    conn: Option<Arc<Conn>>,
    facts: Mutex<Facts>,
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The answer's status; `None` until there is one.
    status: Option<u16>,
    code: Option<&'static str>,
    /// Whether the answer's last byte was handed on.
    is_sent: bool,
    abort: Option<Abort>,
    /// When it was handed to the engine.
    pub(crate) submitted: Option<Instant>,
    pub(crate) started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// When the last token of each answer came, by prompt and choice.
    latest: HashMap<(usize, usize), Instant>,
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) tokens: usize,
    pub(crate) max_tokens: Option<usize>,
    finish: Option<&'static str>,
}

impl Exchange {
    /// One that begins now, with the name that the client gave it or a new one.
    pub(crate) fn new(
        id: String,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        meters: Arc<Meters>,
        conn: Option<Arc<Conn>>,
    ) -> Arc<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        Arc::new(Self {
            id: text("x-request-id").filter(|id| is_name(id)).unwrap_or(id),
            began: Instant::now(),
            method,
            // A log is no place for megabytes.
            path: path.chars().take(200).collect(),
            traceparent: text("traceparent").filter(|id| is_name(id)),
            meters,
            conn,
            facts: Mutex::default(),
        })
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer begins with this status.
    pub(crate) fn answered(&self, status: u16, code: Option<&'static str>) {
        let mut facts = self.facts();
        facts.status = Some(status);
        facts.code = code.or(facts.code);
        if let Some(code) = code {
            self.meters.was_rejected(code);
        }
    }

    /// The answer's last byte was handed on.
    pub(crate) fn sent(&self) {
        self.facts().is_sent = true;
    }

    /// It ends before its end; the first cause counts.
    pub(crate) fn abort(&self, cause: Abort) {
        self.facts().abort.get_or_insert(cause);
        // Nobody will read the rest of what is in the socket's buffer.
        if cause == Abort::SlowClient
            && let Some(conn) = &self.conn
        {
            conn.close_for_one();
        }
    }

    /// It was handed to the engine.
    pub(crate) fn submitted(&self, prompt_tokens: usize, max_tokens: Option<usize>) {
        let mut facts = self.facts();
        facts.submitted = Some(Instant::now());
        facts.prompt_tokens = prompt_tokens;
        facts.max_tokens = max_tokens;
    }

    /// The turn of one of its prompts came at `at`.
    pub(crate) fn started(&self, at: Instant, prompt_tokens: usize, cached: usize) {
        let mut facts = self.facts();
        facts.started.get_or_insert(at);
        facts.cached_tokens += cached;
        self.meters.prompt_tokens.increment(prompt_tokens as u64);
    }

    /// A token of an answer came at `at`.
    pub(crate) fn token(&self, at: Instant, prompt: usize, choice: usize) {
        let mut facts = self.facts();
        facts.tokens += 1;
        facts.last = Some(at);
        if facts.first.is_none() {
            facts.first = Some(at);
            self.meters.first_token.record(at.duration_since(self.began));
        }
        if let Some(before) = facts.latest.insert((prompt, choice), at) {
            let gap = at.duration_since(before);
            self.meters.inter_token.iter().for_each(|one| one.record(gap));
        }
        self.meters.generation_tokens.increment(1);
    }

    /// All of its answers are there.
    pub(crate) fn finished(&self, reason: &'static str) {
        let mut facts = self.facts();
        facts.finish = Some(reason);
        let meters = &self.meters;
        meters.succeeded(reason);
        meters.whole.record(self.began.elapsed());
        meters.request_prompt.record(facts.prompt_tokens as f64);
        meters.request_generation.record(facts.tokens as f64);
        let (Some(submitted), Some(started)) = (facts.submitted, facts.started) else {
            return;
        };
        meters.queued.record(started.saturating_duration_since(submitted));
        let (Some(first), Some(last)) = (facts.first, facts.last) else {
            return;
        };
        meters.prefill.record(first.saturating_duration_since(started));
        meters.decode.record(last.saturating_duration_since(first));
        meters.inference.record(last.saturating_duration_since(started));
        if let Some(gap) = facts.gap() {
            meters.per_token.record(gap);
        }
    }
}

impl Facts {
    /// Mean seconds between tokens of an answer.
    fn gap(&self) -> Option<f64> {
        // The first token of each answer follows on none.
        let gaps = self.tokens.checked_sub(self.latest.len()).filter(|&n| n > 0)?;
        let time = self.last?.saturating_duration_since(self.first?).as_secs_f64();
        Some(time * self.latest.len() as f64 / gaps as f64)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let facts = std::mem::take(&mut *self.facts());
        let (id, method, path) = (&self.id, &self.method, &self.path);
        let seconds = self.began.elapsed().as_secs_f64();
        let is_gone = !facts.is_sent || facts.status.is_none();
        // nginx's number for a client that went away.
        let status = if is_gone { 499 } else { facts.status.unwrap_or(499) };
        let traceparent = self.traceparent.as_deref();
        let Some(submitted) = facts.submitted else {
            if path.ends_with("/health")
                || ["/metrics", "/livez", "/readyz", "/ping"]
                    .iter()
                    .any(|p| path.ends_with(p))
            {
                tracing::debug!(id, %method, path, status, seconds, traceparent, "answered");
            } else {
                tracing::info!(id, %method, path, status, seconds, code = facts.code, traceparent, "answered");
            }
            return;
        };
        let abort = facts
            .abort
            .or_else(|| (facts.finish.is_none() || is_gone).then_some(Abort::Disconnect));
        if let Some(cause) = abort
            && facts.finish.is_none()
        {
            self.meters.was_aborted(cause);
        }
        let queue = facts
            .started
            .map(|at| at.saturating_duration_since(submitted).as_secs_f64());
        let ttft = facts
            .first
            .map(|at| at.saturating_duration_since(self.began).as_secs_f64());
        tracing::info!(
            id,
            %method,
            path,
            status,
            seconds,
            code = facts.code,
            prompt_tokens = facts.prompt_tokens,
            cached_tokens = facts.cached_tokens,
            tokens = facts.tokens,
            queue,
            ttft,
            tpot = facts.gap(),
            finish = facts.finish,
            abort = abort.map(Abort::as_str),
            traceparent,
            "answered"
        );
    }
}

/// Whether a client's name for a request is short and can be printed.
fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn exchange(headers: &HeaderMap) -> Arc<Exchange> {
        Exchange::new(
            "own".into(),
            Method::GET,
            "/x",
            headers,
            Arc::new(Meters::new("m")),
            None,
        )
    }

    #[test]
    fn a_name_is_taken_over_where_it_can_be_printed() {
        for (given, taken) in [("abc-1", "abc-1"), ("", "own"), ("a b", "own")] {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", given.parse().unwrap());
            assert_eq!(exchange(&headers).id, taken);
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", "x".repeat(129).parse().unwrap());
        assert_eq!(exchange(&headers).id, "own");
    }

    #[test]
    fn a_request_counts_once_as_answered_or_aborted() {
        let meters = Arc::new(Meters::new("m"));
        let new = || {
            Exchange::new(
                "a".into(),
                Method::GET,
                "/x",
                &HeaderMap::new(),
                Arc::clone(&meters),
                None,
            )
        };
        let (answered, gone) = (new(), new());
        for one in [&answered, &gone] {
            one.submitted(5, None);
            let now = Instant::now();
            one.started(now, 5, 2);
            one.token(now, 0, 0);
            one.token(now + Duration::from_millis(10), 0, 0);
        }
        answered.finished("length");
        answered.answered(200, None);
        answered.sent();
        drop((answered, gone));
        let text = meters.text();
        for line in [
            "vllm:request_success_total{model_name=\"m\",engine=\"0\",finished_reason=\"length\"} 1",
            "bitnet_requests_aborted_total{cause=\"disconnect\"} 1",
            "vllm:prompt_tokens_total{model_name=\"m\",engine=\"0\"} 10",
            "vllm:generation_tokens_total{model_name=\"m\",engine=\"0\"} 4",
            "vllm:inter_token_latency_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"0.01\"} 2",
            "vllm:e2e_request_latency_seconds_count{model_name=\"m\",engine=\"0\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
