use redlock_core::Redlock;
use tower_redlock::RedlockLayer;

fn main() {
    RedlockLayer::new(Redlock::in_memory(), |parts: &http::request::Parts| parts.uri.path());
}
