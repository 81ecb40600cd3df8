//! Clients of HTTP. The swarm brings one implementation of cryptography for its own TLS, and this is the same.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder};
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls_platform_verifier::BuilderVerifierExt;

/// How long a connection may take to come about.
const CONNECTS_WITHIN: Duration = Duration::from_secs(20);
/// How long an answer may say nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// A client of what runs on this machine. It goes through no proxy and trusts nobody, so the machine's certificates need
/// not be read.
pub fn loopback() -> Client {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has what the default versions of TLS need")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    ClientBuilder::new()
        .no_proxy()
        .tls_backend_preconfigured(config)
        .build()
        .expect("a client is made of nothing that can fail when TLS and proxies are settled")
}

/// A client of what the network has, which trusts whom this machine trusts and goes through its proxy. With `secure` it
/// goes nowhere without TLS, wherever it is sent on to.
///
/// # Errors
/// In words, where this machine trusts nobody.
pub(crate) fn network(agent: &str, secure: bool) -> Result<Client, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_platform_verifier())
        .map_err(|error| format!("the certificates that this machine trusts cannot be read: {error}"))?;
    ClientBuilder::new()
        .user_agent(agent)
        .https_only(secure)
        .tls_backend_preconfigured(config.with_no_client_auth())
        .connect_timeout(CONNECTS_WITHIN)
        .read_timeout(SILENCE)
        .build()
        .map_err(|error| error.to_string())
}
