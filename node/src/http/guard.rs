//! Who may ask what.
//!
//! The node's own interface, which reads and writes this machine's files, asks for the secret that is in `api.json`.
//! What programs ask is answered on loopback without a key, unless one is configured, so that they work as they are;
//! but not what a page in a browser asks for another site, and not under a name that such a page may have given to this
//! machine. On any other address a key is always asked for.

use std::net::IpAddr;

use axum::http::{HeaderMap, StatusCode, header};

use super::Shared;

/// Why a request is turned away.
#[derive(Debug)]
pub(super) struct Denied {
    pub status: StatusCode,
    pub message: &'static str,
}

/// The keys of a node's doors.
#[derive(Clone)]
pub struct Keys {
    /// The secret of `api.json`, which opens every door.
    pub token: String,
    /// What programs have to give, where one is configured.
    pub programs: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("programs", &self.programs.is_some()).finish_non_exhaustive()
    }
}

/// Whether the node's own interface is open to a request.
pub(super) fn own(shared: &Shared, headers: &HeaderMap) -> Result<(), Denied> {
    if same_secret(given(headers), &shared.keys.token) {
        return Ok(());
    }
    let message = "the bearer token of api.json is missing or wrong";
    Err(Denied { status: StatusCode::UNAUTHORIZED, message })
}

/// Whether the interface of programs is open to a request.
pub(super) fn programs(shared: &Shared, headers: &HeaderMap) -> Result<(), Denied> {
    if own(shared, headers).is_ok() {
        return Ok(());
    }
    match &shared.keys.programs {
        Some(key) if same_secret(given(headers), key) => Ok(()),
        Some(_) => {
            let message = "the API key is missing or wrong; send it as \"Authorization: Bearer KEY\"";
            Err(Denied { status: StatusCode::UNAUTHORIZED, message })
        }
        None if is_local(headers) => Ok(()),
        None => {
            let message = "pages of other sites may not use this interface without the bearer token of api.json";
            Err(Denied { status: StatusCode::FORBIDDEN, message })
        }
    }
}

/// Whether a request was made to this machine by its own name, and by no page of another site.
fn is_local(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST).is_none_or(|host| is_own_name(without_port(host), |_| true));
    let origin = text(header::ORIGIN).is_none_or(|origin| {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        is_own_name(without_port(host), |address| address.is_loopback())
    });
    host && origin
}

/// A page can give its own domain any address, but no domain is an address or `localhost`.
fn is_own_name(host: &str, address: impl FnOnce(IpAddr) -> bool) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(address)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The last part of an address of version 6 is no port.
        Some((name, _)) if !name.contains(':') || name.ends_with(']') => name,
        _ => host,
    }
}

fn given(headers: &HeaderMap) -> &str {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default()
}

/// Compares in a time that does not tell how much of the secret was right.
fn same_secret(given: &str, secret: &str) -> bool {
    let (given, secret) = (given.as_bytes(), secret.as_bytes());
    given.len() == secret.len() && given.iter().zip(secret).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
