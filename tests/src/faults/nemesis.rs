//! Carries faults out, on time, and undoes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, cmd};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::load::Load;
use super::network::Network;
use super::plan::Plan;
use super::{Fault, Kind};
use crate::Fleet;

/// How long a replica may take to get the data of its primary.
const SYNC: Duration = Duration::from_secs(2);

/// What faults happen to.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) fleet: Fleet,
    network: Network,
    pub(super) load: Load,
    /// Held while a server has a fault, so that the next one waits where one took longer.
    claims: Vec<Mutex<()>>,
    /// When each server lost its data last. Held while one does, if that has to be spaced.
    losses: Mutex<Vec<Option<Instant>>>,
}

/// What was carried out.
#[derive(Debug, Default)]
pub(super) struct CarriedOut {
    pub(super) faults: BTreeMap<Kind, u64>,
    /// Faults that had no effect: the server did not do what it was told.
    pub(super) in_vain: u64,
    /// When each server last took over the data of another one.
    pub(super) copied: BTreeMap<usize, Instant>,
}

/// Carries the plan out and returns when the last fault is undone.
pub(super) async fn carry_out(scene: &Arc<Scene>, plan: &Plan, spacing: Duration) -> CarriedOut {
    let began = Instant::now();
    let mut under_way = JoinSet::new();
    let mut carried_out = CarriedOut::default();
    for fault in &plan.0 {
        sleep_until(began + fault.at).await;
        let (scene, fault) = (Arc::clone(scene), *fault);
        under_way.spawn(async move { (fault, scene.carry_out(&fault, spacing).await) });
        while let Some(ended) = under_way.try_join_next() {
            carried_out.count(ended.expect("the nemesis does not fail"));
        }
    }
    while let Some(ended) = under_way.join_next().await {
        carried_out.count(ended.expect("the nemesis does not fail"));
    }
    carried_out
}

impl CarriedOut {
    fn count(&mut self, (fault, done): (Fault, RedisResult<()>)) {
        if fault.kind == Kind::Promote {
            self.copied.insert(fault.node, Instant::now());
        }
        match done {
            Ok(()) => *self.faults.entry(fault.kind).or_default() += 1,
            Err(_) => self.in_vain += 1,
        }
    }
}

impl Scene {
    pub(super) fn new(fleet: Fleet, network: Network, load: Load) -> Self {
        let claims = fleet.iter().map(|_| Mutex::default()).collect();
        let losses = Mutex::new(vec![None; fleet.len()]);
        Self { fleet, network, load, claims, losses }
    }

    async fn carry_out(&self, fault: &Fault, spacing: Duration) -> RedisResult<()> {
        if let (Some(client), Kind::PauseClient | Kind::KillClient) = (fault.client, fault.kind) {
            match fault.kind {
                Kind::KillClient => self.load.replace(client).await,
                _ => self.load.pause(client, fault.lasts).await,
            }
            return Ok(());
        }
        let _claim = self.claims[fault.node].lock().await;
        if !fault.kind.loses_data() {
            return self.disturb(fault).await;
        }
        if spacing.is_zero() {
            return self.lose_data(fault).await;
        }
        let mut losses = self.losses.lock().await;
        let others = losses.iter().enumerate().filter(|(node, _)| *node != fault.node);
        if let Some(last) = others.filter_map(|(_, lost)| *lost).max() {
            sleep_until(last + spacing).await;
        }
        let lost = self.lose_data(fault).await;
        losses[fault.node] = Some(Instant::now());
        lost
    }

    async fn lose_data(&self, fault: &Fault) -> RedisResult<()> {
        let server = &self.fleet[fault.node];
        match fault.kind {
            Kind::Kill => {
                server.restart().await;
                Ok(())
            }
            Kind::Flush => server.try_ask(&cmd("FLUSHALL")).await,
            _ => self.promote(fault.node).await,
        }
    }

    async fn disturb(&self, fault: &Fault) -> RedisResult<()> {
        let server = &self.fleet[fault.node];
        let max_memory = async |bytes: u8| {
            let mut set = cmd("CONFIG");
            server.try_ask(set.arg("SET").arg("maxmemory").arg(bytes)).await
        };
        match fault.kind {
            Kind::Stop => {
                server.pause();
                sleep(fault.lasts).await;
                server.resume();
                Ok(())
            }
            Kind::Oom => {
                max_memory(1).await?;
                sleep(fault.lasts).await;
                max_memory(0).await
            }
            Kind::Scripts => server.try_ask(cmd("SCRIPT").arg("FLUSH")).await,
            Kind::ClientKill => {
                let mut kill = cmd("CLIENT");
                server.try_ask(kill.arg("KILL").arg("TYPE").arg("normal")).await
            }
            _ => {
                self.network.disturb(fault).await;
                if fault.kind != Kind::Cut {
                    sleep(fault.lasts).await;
                    self.network.heal(fault);
                }
                Ok(())
            }
        }
    }

    /// The server takes over the data of the next one, and stands alone again whether or not it
    /// got it in time.
    async fn promote(&self, node: usize) -> RedisResult<()> {
        let (server, primary) = (&self.fleet[node], &self.fleet[(node + 1) % self.fleet.len()]);
        let replicate = async |host: &str, port: &str| {
            let mut replicate = cmd("REPLICAOF");
            server.try_ask::<()>(replicate.arg(host).arg(port)).await
        };
        replicate("127.0.0.1", &primary.port().to_string()).await?;
        let synced = timeout(SYNC, async {
            loop {
                let info: RedisResult<String> =
                    server.try_ask(cmd("INFO").arg("replication")).await;
                if info.is_ok_and(|info| info.contains("master_link_status:up")) {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        replicate("NO", "ONE").await?;
        let in_vain = (redis::ErrorKind::Io, "the replica got no data");
        synced.map_err(|_| in_vain.into())
    }
}
