//! Web pages of other origins: which may read answers (CORS), and which names a server on loopback answers to.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue};

use crate::options::Cors;

/// Headers that pages may send: those of the API, and those that OpenAI's JavaScript client adds.
const HEADERS: &str = "authorization, content-type, x-request-id, api-key, x-stainless-arch, x-stainless-async, \
    x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version, \
    x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, \
    x-stainless-timeout";

/// Adds to an answer what lets the page that asked read it, if it may.
pub(crate) fn allow(cors: &Cors, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
    if *cors == Cors::Any {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    } else {
        // What is cached for one origin is not for another.
        answer.append(VARY, HeaderValue::from_name(ORIGIN));
        let Some(origin) = origin.filter(|origin| is_allowed(cors, origin)) else {
            return;
        };
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    answer.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("x-request-id, retry-after"),
    );
}

/// Adds what a browser asks before it sends a request.
pub(crate) fn allow_asked(answer: &mut HeaderMap) {
    answer.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, OPTIONS"),
    );
    answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
    answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}

fn is_allowed(cors: &Cors, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    match cors {
        Cors::Any => true,
        Cors::List(list) => list.iter().any(|listed| listed.eq_ignore_ascii_case(origin)),
        Cors::Localhost => {
            let authority = origin
                .strip_prefix("http://")
                .or_else(|| origin.strip_prefix("https://"));
            authority.is_some_and(is_loopback_name)
        }
    }
}

/// Whether `authority`, a name with or without a port, can only be this machine: a page of another name, which its owner lets
/// resolve to 127.0.0.1, would otherwise reach a server that is meant for local programs (DNS rebinding).
pub(crate) fn is_loopback_name(authority: &str) -> bool {
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => authority.rsplit_once(':').map_or(authority, |(name, port)| {
            if port.bytes().all(|b| b.is_ascii_digit()) {
                name
            } else {
                authority
            }
        }),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for name in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1",
            "127.9.9.9:8080",
            "[::1]:1",
            "[::1]",
            "a.localhost:3",
            "localhost.",
        ] {
            assert!(is_loopback_name(name), "{name}");
        }
        for name in [
            "",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.nip.io:80",
            "10.0.0.1",
            "[::2]",
            "[",
            "::1:80x",
            "localhost:evil",
        ] {
            assert!(!is_loopback_name(name), "{name}");
        }
    }

    #[test]
    fn an_origin_is_echoed_or_gets_nothing() {
        let list = Cors::List(vec!["https://chat.example".to_owned()]);
        for (cors, origin, allowed) in [
            (
                &Cors::Localhost,
                "http://localhost:3000",
                Some("http://localhost:3000"),
            ),
            (&Cors::Localhost, "http://localhost.evil.example", None),
            (&Cors::Localhost, "null", None),
            (&list, "https://chat.example", Some("https://chat.example")),
            (&list, "http://chat.example", None),
            (&list, "http://localhost", None),
            (&Cors::Any, "http://a.example", Some("*")),
        ] {
            let mut answer = HeaderMap::new();
            allow(cors, Some(&HeaderValue::from_static(origin)), &mut answer);
            let got = answer
                .get(ACCESS_CONTROL_ALLOW_ORIGIN)
                .map(|v| v.to_str().unwrap());
            assert_eq!(got, allowed, "{origin}");
            assert_eq!(answer.contains_key(VARY), *cors != Cors::Any);
            assert!(!answer.contains_key("access-control-allow-credentials"));
        }
    }
}
