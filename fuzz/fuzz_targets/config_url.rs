//! The URL of a server: read or refused, and a password in it is never shown, wherever it stands.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redlock_core::{Config, Server};

fn said_of(url: &str) -> String {
    let server = Server::from(url);
    let shown = format!("{server:?}");
    match Config::servers([server]).build() {
        Ok(config) => format!("{shown} {config:?}"),
        Err(error) => format!("{shown} {error} {error:?}"),
    }
}

fuzz_target!(|parts: (&str, &str, &str)| {
    let (url, before, after) = parts;
    said_of(url);
    let password = format!("{before}s3cr3t{after}");
    for url in [
        format!("redis://bob:{password}@host/1"),
        format!("redis://:{password}@host/1"),
        format!("redis://{password}@host/1"),
        format!("unix:///run/redis.sock?pass={password}&db=1"),
        format!("unix:///run/redis.sock?user={password}&db=1"),
    ] {
        let said = said_of(&url);
        assert!(!said.contains("s3cr3t"), "{url} is shown: {said}");
    }
    if !password.contains("://") {
        let said = said_of(&password);
        assert!(!said.contains("s3cr3t"), "{password} is shown: {said}");
    }
});
