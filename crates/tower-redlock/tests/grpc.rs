//! A gRPC service of tonic under the layer, asked by a client of tonic's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use bytes::Bytes;
use redlock_core::Redlock;
use redlock_tests::eventually;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower_redlock::{Hold, RedlockLayer, Rejection, RejectionKind, key};

const SOON: Duration = Duration::from_secs(20);

fn status(rejection: &Rejection) -> Status {
    let code = match rejection.kind() {
        RejectionKind::Locked => Code::Aborted,
        RejectionKind::BadKey => Code::InvalidArgument,
        _ => Code::Unavailable,
    };
    Status::new(code, rejection.detail())
}

async fn client(redlock: &Redlock, hold: Hold) -> HealthClient<Channel> {
    let layer = RedlockLayer::new(redlock.clone(), key::header("x-order"))
        .hold(hold)
        .on_rejection(|rejection| status(rejection).into_http::<Bytes>());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_reporter, service) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(layer).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    HealthClient::new(channel.connect().await.unwrap())
}

fn ask(order: Option<&'static str>) -> Request<HealthCheckRequest> {
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(order) = order {
        request.metadata_mut().insert("x-order", order.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_client_is_told_why_it_has_no_lock_as_a_status() {
    let redlock = Redlock::in_memory();
    let mut client = client(&redlock, Hold::Response).await;
    assert!(client.check(ask(Some("7"))).await.is_ok());
    let held = redlock.lock("header:x-order:7").await.unwrap();
    let locked = client.check(ask(Some("7"))).await.unwrap_err();
    assert_eq!(locked.code(), Code::Aborted);
    assert_eq!(locked.message(), "another request holds the lock; try again later");
    held.release().await;
    assert!(client.check(ask(Some("7"))).await.is_ok());

    let keyless = client.check(ask(None)).await.unwrap_err();
    assert_eq!(keyless.code(), Code::InvalidArgument);
    redlock.close(Duration::ZERO).await;
    assert_eq!(client.check(ask(Some("7"))).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_stream_of_messages_is_sent_under_the_lock_until_its_client_has_had_enough() {
    let redlock = Redlock::in_memory();
    let mut client = client(&redlock, Hold::Body).await;
    let mut watching = client.watch(ask(Some("7"))).await.unwrap().into_inner();
    assert!(watching.message().await.unwrap().is_some());
    assert_eq!(client.check(ask(Some("7"))).await.unwrap_err().code(), Code::Aborted);
    drop(watching);
    eventually(SOON, "the lock is free", async || client.check(ask(Some("7"))).await.is_ok()).await;
}
