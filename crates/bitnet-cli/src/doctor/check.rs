//! What `bitnet doctor` finds, and how it is printed.

use serde_json::{Map, Value, json};

use crate::terminal::Terminal;

/// How well a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Ok,
    Warning,
    Failure,
}

impl Verdict {
    /// Its name in both outputs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(super) struct Check {
    name: &'static str,
    pub(super) verdict: Verdict,
    message: String,
    remedy: Option<String>,
    facts: Map<String, Value>,
}

impl Check {
    /// All is well with `name`.
    pub(super) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            message: message.into(),
            remedy: None,
            facts: Map::new(),
        }
    }

    /// It works, not as well as it could.
    pub(super) fn warning(name: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            remedy: Some(remedy.into()),
            ..Self::ok(name, message)
        }
    }

    /// It does not work.
    pub(super) fn failure(name: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Failure,
            ..Self::warning(name, message, remedy)
        }
    }

    /// Adds a number or name for programs that read the report.
    pub(super) fn fact(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(key.to_owned(), value.into());
        self
    }

    /// For people: the verdict, the name, what was found, and on a line of its own what to do.
    pub(super) fn text(&self, terminal: Terminal) -> String {
        let verdict = format!("{:7}", self.verdict.name());
        let verdict = match self.verdict {
            Verdict::Ok => terminal.good(&verdict),
            Verdict::Warning => terminal.doubtful(&verdict),
            Verdict::Failure => terminal.bad(&verdict),
        };
        let mut text = format!("{verdict}  {:10} {}", self.name, self.message);
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("\n{:20} remedy: {remedy}", ""));
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "verdict": self.verdict.name(),
            "message": self.message,
            "remedy": self.remedy,
            "facts": self.facts,
        })
    }
}
