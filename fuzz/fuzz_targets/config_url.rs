//! The URL of a server: read or refused, and a password in it is never shown.
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
    for (start, end) in [("redis://bob:", "@host/1"), ("unix:///run/redis.sock?pass=", "&db=1")] {
        let url = format!("{start}{before}s3cr3t{after}{end}");
        // What follows an & is another setting: a user is no secret, for example.
        if start.starts_with("redis") || !before.contains('&') {
            let said = said_of(&url);
            assert!(!said.contains("s3cr3t"), "{url} gave {said}");
        }
    }
});
