//! Carries faults out, on time, and undoes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, cmd};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::load::Load;
use super::memory::Memory;
use super::network::Network;
use super::plan::Plan;
use super::{Fault, Kind};
use crate::{Fleet, RedisServer, Stamp};

/// How long a replica may take to get the data of its primary.
const SYNC: Duration = Duration::from_secs(2);

/// How much of an append-only file is lost at most.
const TORN: u32 = 16 * 1024;

/// By how much a clock is set, in milliseconds.
const AHEAD: [i64; 3] = [-2_000, 2_000, 5_000];

/// What faults happen to.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) fleet: Fleet,
    network: Network,
    pub(super) load: Load,
    pub(super) memory: Memory,
    /// The number of the configuration.
    epoch: Mutex<u32>,
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
    /// When each server last took over the data of another one, or old data of its own.
    pub(super) copied: BTreeMap<usize, Instant>,
    pub(super) done: Vec<Done>,
}

/// A fault that was carried out.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Done {
    from: Stamp,
    to: Stamp,
    fault: Fault,
    /// Why it had no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_vain: Option<String>,
}

/// Carries the plan out and returns when the last fault is undone.
pub(super) async fn carry_out(scene: &Arc<Scene>, plan: &Plan, spacing: Duration) -> CarriedOut {
    let began = Instant::now();
    let mut under_way = JoinSet::new();
    let mut carried_out = CarriedOut::default();
    for fault in &plan.0 {
        sleep_until(began + fault.at).await;
        let (scene, fault) = (Arc::clone(scene), *fault);
        under_way.spawn(async move {
            let from = Stamp::now();
            let in_vain = scene.carry_out(&fault, spacing).await.err();
            let in_vain = in_vain.map(|error| error.to_string());
            Done { from, to: Stamp::now(), fault, in_vain }
        });
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
    fn count(&mut self, done: Done) {
        let Fault { kind, node, .. } = done.fault;
        if matches!(kind, Kind::Promote | Kind::Torn) {
            self.copied.insert(node, Instant::now());
        }
        match &done.in_vain {
            None => *self.faults.entry(kind).or_default() += 1,
            Some(_) => self.in_vain += 1,
        }
        self.done.push(done);
    }
}

impl Scene {
    pub(super) fn new(fleet: Fleet, network: Network, load: Load, memory: Memory) -> Self {
        let claims = fleet.iter().map(|_| Mutex::default()).collect();
        let losses = Mutex::new(vec![None; fleet.len()]);
        Self { fleet, network, load, memory, epoch: Mutex::default(), claims, losses }
    }

    async fn carry_out(&self, fault: &Fault, spacing: Duration) -> RedisResult<()> {
        if let (Some(client), Kind::PauseClient | Kind::KillClient) = (fault.client, fault.kind) {
            match fault.kind {
                Kind::KillClient => self.load.replace(client).await,
                _ => self.load.pause(client, fault.lasts).await,
            }
            return Ok(());
        }
        if fault.kind == Kind::Epoch {
            let mut epoch = self.epoch.lock().await;
            *epoch += 1;
            self.load.change_to(*epoch).await;
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
        self.memory.begins_to_lose(fault.node);
        let lost = self.have_lose_data(fault).await;
        self.memory.has_lost(fault.node);
        lost
    }

    async fn have_lose_data(&self, fault: &Fault) -> RedisResult<()> {
        let server = &self.fleet[fault.node];
        match fault.kind {
            Kind::Kill => {
                server.restart().await;
                Ok(())
            }
            Kind::Flush => server.try_ask(&cmd("FLUSHALL")).await,
            Kind::Torn => tear(server, fault).await,
            Kind::Clock => {
                server.set_clock(AHEAD[fault.delay.subsec_micros() as usize % AHEAD.len()]);
                sleep(fault.lasts).await;
                server.set_clock(0);
                Ok(())
            }
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
            Kind::Acl => {
                let user = async |rights: &str| {
                    let mut set = cmd("ACL");
                    server.try_ask(set.arg("SETUSER").arg("default").arg(rights)).await
                };
                user("-@scripting").await?;
                sleep(fault.lasts).await;
                user("+@scripting").await
            }
            Kind::PauseAll | Kind::PauseWrites => {
                let which = if fault.kind == Kind::PauseAll { "ALL" } else { "WRITE" };
                let mut pause = cmd("CLIENT");
                pause.arg("PAUSE").arg(fault.lasts.as_millis().max(1).to_string()).arg(which);
                server.try_ask::<()>(&pause).await?;
                sleep(fault.lasts).await;
                Ok(())
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

/// The server keeps what it is told from now on, for a while, and loses the end of that.
async fn tear(server: &RedisServer, fault: &Fault) -> RedisResult<()> {
    let mut keep = cmd("CONFIG");
    server.try_ask::<()>(keep.arg("SET").arg("appendonly").arg("yes")).await?;
    let begun = timeout(SYNC, async {
        loop {
            let info: RedisResult<String> = server.try_ask(cmd("INFO").arg("persistence")).await;
            let is = |info: &str, what| info.contains(what);
            if info.is_ok_and(|info| {
                is(&info, "aof_rewrite_in_progress:0") && is(&info, "aof_rewrite_scheduled:0")
            }) {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    sleep(fault.lasts).await;
    let bytes = fault.delay.subsec_micros() % TORN;
    server.restart_torn(u64::from(bytes)).await;
    let in_vain = (redis::ErrorKind::Io, "the file was not begun in time");
    begun.map_err(|_| in_vain.into())
}
