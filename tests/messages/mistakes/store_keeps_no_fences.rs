use tower_redlock::{FenceLayer, key};

struct Database;

fn main() {
    FenceLayer::new(Database, key::path());
}
