//! A gRPC service under the layer: one call per `x-order` at a time.
//!
//! `cargo run -p tower-redlock --example tonic`

use std::error::Error;
use std::net::SocketAddr;

use bytes::Bytes;
use redlock_core::Redlock;
use tonic::transport::Server;
use tonic::{Code, Status};
use tower_redlock::{RedlockLayer, Rejection, RejectionKind, key};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let one_per_order = RedlockLayer::new(Redlock::in_memory(), key::header("x-order"))
        .on_rejection(|rejection| status(rejection).into_http::<Bytes>());

    let (_reporter, service) = tonic_health::server::health_reporter();
    let address: SocketAddr = "127.0.0.1:50051".parse()?;
    println!("grpc://{address}");
    Server::builder().layer(one_per_order).add_service(service).serve(address).await?;
    Ok(())
}

/// gRPC clients look for a status in the headers and not for 423.
fn status(rejection: &Rejection) -> Status {
    let code = match rejection.kind() {
        RejectionKind::Locked => Code::Aborted,
        RejectionKind::BadKey => Code::InvalidArgument,
        _ => Code::Unavailable,
    };
    Status::new(code, rejection.detail())
}
