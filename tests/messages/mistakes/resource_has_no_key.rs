use axum::extract::Path;
use tower_redlock::LockResource;

struct AccountId(String);

fn key_of(resource: &impl LockResource) {
    resource.lock_key();
}

fn main() {
    key_of(&Path(AccountId("7".into())));
}
