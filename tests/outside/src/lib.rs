//! Servers with TLS, for applications outside of the workspace.
//!
//! The test kit of the workspace can't be used here: it enables features of redlock-core and of
//! rustls. `openssl` makes the certificates, because a crate for it brings a crypto provider.

#[path = "../../src/postgres.rs"]
pub mod postgres;

mod certificates;
mod redis;

pub use certificates::Certificates;
pub use redis::Redis;

/// Runs a future to its end, on one thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}
