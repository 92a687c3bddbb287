//! How many connections there are.

use futures_util::future::join_all;
use redlock_core::Released;
use redlock_tests::{Fleet, RedisServer, eventually};

use crate::{PATIENCE, build, settings};

/// The connections of everybody but the harness.
async fn connections(server: &RedisServer) -> usize {
    let list: String =
        redis::cmd("CLIENT").arg("LIST").query_async(&mut server.connection().await).await.unwrap();
    list.lines().filter(|line| line.contains(" user=default ")).count()
}

#[tokio::test]
async fn the_pool_size_is_the_number_of_connections_to_each_server() {
    let fleet = Fleet::start(3).await;
    for pool_size in [1, 4] {
        let redlock = build(settings(&fleet).pool_size(pool_size));
        for round in 0..3 {
            let guards =
                join_all((0..64).map(|order| redlock.lock(format!("order:{order}")).into_future()));
            let guards = guards.await.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
            for server in &fleet {
                eventually(PATIENCE, "every connection", async || {
                    let open = connections(server).await;
                    assert!(open <= pool_size, "{open} connections in round {round}");
                    open == pool_size
                })
                .await;
            }
            eventually(PATIENCE, "every vote", async || fleet.total_keys().await == 3 * 64).await;
            let released = join_all(guards.into_iter().map(|guard| guard.release())).await;
            assert!(released.iter().all(|released| *released == Released::Released));
        }
        drop(redlock);
        for server in &fleet {
            eventually(PATIENCE, "an end", async || connections(server).await == 0).await;
        }
    }
}

#[tokio::test]
async fn nothing_is_connected_to_before_it_is_needed() {
    let fleet = Fleet::start(3).await;
    let redlock = build(settings(&fleet).pool_size(4));
    for server in &fleet {
        assert_eq!(connections(server).await, 0);
    }
    redlock.lock("order").await.unwrap().release().await;
    eventually(PATIENCE, "a connection", async || connections(&fleet[2]).await > 0).await;
}
