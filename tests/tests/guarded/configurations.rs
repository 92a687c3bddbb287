//! Processes that disagree about the servers never share them silently (H22).

use std::time::Duration;

use redlock_core::{Config, NodeAnswer, Provisioned, Redlock, RingScheme};
use redlock_tests::{Fleet, eventually};

use crate::{HANG, LONG, provisioned, quarantined, settings};

/// Why the first of the nodes that refuse does so.
async fn refusal(redlock: &Redlock) -> String {
    eventually(HANG, "a refusal", async || {
        let error = redlock.try_lock("refused").await.err()?;
        assert!(error.is_unavailable(), "{error}");
        error.nodes().iter().find_map(|node| match &node.answer {
            NodeAnswer::Refused(why) if why.contains("under this") => Some(why.to_string()),
            _ => None,
        })
    })
    .await
}

#[tokio::test]
async fn another_list_of_servers_under_the_same_epoch_is_refused() {
    let fleet = Fleet::start(5).await;
    let (three, five) = (fleet.urls()[..3].to_vec(), fleet.urls());
    let first = Redlock::new(settings(&three, LONG).build().unwrap());
    assert_eq!(first.provision().await.unwrap(), Provisioned::New);
    let _held = first.lock("order").await.unwrap();
    let second = Redlock::new(settings(&five, LONG).build().unwrap());
    let why = refusal(&second).await;
    assert!(why.contains("raise `epoch`"), "{why}");
    assert_eq!(second.provision().await.unwrap(), Provisioned::InUse);
}

#[tokio::test]
async fn a_larger_max_ttl_or_another_ring_is_refused() {
    let fleet = Fleet::start(3).await;
    provisioned(&fleet, LONG).await;
    let urls = fleet.urls();
    for other in
        [settings(&urls, LONG).max_ttl(2 * LONG), settings(&urls, LONG).ring(RingScheme::Ketama)]
    {
        refusal(&Redlock::new(other.build().unwrap())).await;
    }
}

#[tokio::test]
async fn the_order_of_the_servers_and_what_is_no_part_of_the_layout_do_not_matter() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet, LONG).await;
    let guard = redlock.lock("order").await.unwrap();
    let mut urls = fleet.urls();
    urls.reverse();
    let other = settings(&urls, LONG / 2).max_ttl(LONG).pool_size(3).label("other");
    let other = Redlock::new(other.build().unwrap());
    let error = other.try_lock("order").await.unwrap_err();
    assert_eq!(error.holder(), Some("guarded"), "{error}");
    guard.release().await;
    other.lock("order").await.unwrap().release().await;
}

#[tokio::test]
async fn a_later_epoch_quarantines_the_servers_and_shuts_the_earlier_one_out() {
    let fleet = Fleet::start(3).await;
    let old = provisioned(&fleet, Duration::from_secs(30)).await;
    let _held = old.lock("order").await.unwrap();
    let new = settings(&fleet.urls(), Duration::from_millis(1_200)).epoch(1);
    let new = Redlock::new(new.build().unwrap());
    // Locks of the old epoch last up to its own max_ttl.
    let ready_in = quarantined(&new).await;
    assert!(ready_in > Duration::from_secs(9), "{ready_in:?}");
    let why = refusal(&old).await;
    assert!(why.contains("EPOCH 1") && why.contains("out of date"), "{why}");
}

#[tokio::test]
async fn a_named_fleet_may_have_other_addresses() {
    let fleet = Fleet::start(3).await;
    let by_address = settings(&fleet.urls(), LONG).fleet("shop");
    let by_address = Redlock::new(by_address.build().unwrap());
    assert_eq!(by_address.provision().await.unwrap(), Provisioned::New);
    let _held = by_address.lock("order").await.unwrap();
    let by_name = fleet.iter().map(|server| format!("redis://localhost:{}", server.port()));
    let by_name = Config::servers(by_name).ttl(LONG).node_deadline(Duration::from_secs(2));
    let error = Redlock::new(by_name.fleet("shop").build().unwrap()).try_lock("order").await;
    assert!(error.as_ref().unwrap_err().is_contended(), "{error:?}");
}
