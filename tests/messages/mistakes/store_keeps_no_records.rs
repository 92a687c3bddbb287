use redlock_core::Redlock;
use tower_redlock::idempotency::IdempotencyLayer;

struct Database;

fn main() {
    IdempotencyLayer::new(Redlock::in_memory(), Database);
}
