//! Locks under faults: processes that lock on real servers while these are killed, flushed,
//! stopped and cut off, and a judgement of what they believed to hold.
//!
//! Three things are judged: nobody holds a key while somebody else does ([`check`]), later locks
//! have greater fencing tokens ([`check_tokens`]), and when all is over no key is left behind.
//!
//! Exclusion is promised while fewer than a majority of the servers lose their data within one
//! TTL. `spacing` keeps to that: the next server to lose its data is another one only after so
//! long. Without it, and that is the default, servers lose their data as fast as the faults come,
//! faster than they may. A guarded lock holds all the same, since a server that lost its data does
//! not vote until every lock that it may have forgotten has expired; what it loses then is
//! availability. Plain Redlock has no such defence, and the same faults show it: that is the
//! calibration, without which a run that finds nothing would say nothing.
//!
//! Fencing tokens begin at what a wall clock shows, so clocks that agree put them in order and
//! would hide it if nothing else did. Hence the clients' clocks do not agree. Where a majority of
//! the servers did not know a counter, tokens begin anew. Somebody looks into the servers to know
//! when that was: the lock that would tell may be one that was given up or whose holder was killed
//! before anybody heard of it.

mod audit;
mod client;
mod kept;
mod load;
mod memory;
mod nemesis;
mod network;
mod options;
mod plan;
mod report;
mod subject;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::{Beginnings, Fleet, History, RedisServer, check, check_tokens};
use audit::Exempt;
pub use audit::Orphan;
pub use client::Tally;
use kept::Kept;
use load::Load;
use memory::Memory;
use nemesis::Scene;
use network::Network;
pub use options::{Options, Switch};
use plan::Plan;
pub use plan::{Fault, Kind};
pub use report::Report;

/// What a process that is started with this argument, followed by a job, has to do: [`lock`].
pub const CLIENT: &str = "client";

/// Runs the clients and the faults for as long as the options say, and judges the outcome.
///
/// `program` is what the clients are started from: it must hand over to [`lock`].
pub async fn run(options: &Options, program: &Path) -> Report {
    // A replica waits five seconds for others to join it, unless told not to.
    let mut server = RedisServer::options().config("repl-diskless-sync-delay", "0");
    let directory = TempDir::new().expect("a temporary directory");
    if options.kinds().contains(&Kind::Clock) {
        server = server.own_clock();
    }
    let fleet = Fleet::start_with(options.nodes, server).await;
    let network = Network::start(&fleet, options.clients).await;
    let mut kept = options.keep.as_deref().map(Kept::in_folder);
    let histories = match &kept {
        Some(kept) => kept.history(),
        None => directory.path().join("history"),
    };
    std::fs::create_dir_all(&histories).expect("a folder for histories");
    if let Some(kept) = kept.as_mut().filter(|_| options.monitor) {
        kept.monitor(&fleet);
    }
    subject::provision(options, &fleet.urls()).await;
    let load = Load::start(options, &network, program, &histories).await;

    let began = Instant::now();
    let keys = || (0..options.keys).map(client::key);
    let memory = Memory::new(options.nodes, keys());
    let scene = Arc::new(Scene::new(fleet, network, load, memory));
    let mut witnesses = JoinSet::new();
    for node in 0..options.nodes {
        let scene = Arc::clone(&scene);
        witnesses.spawn(async move { scene.memory.watch(&scene.fleet, node).await });
    }
    let carried_out = nemesis::carry_out(&scene, &Plan::of(options), options.spacing()).await;
    let finished = scene.load.finish().await;
    let seconds = began.elapsed().as_secs_f64();
    let copied_lately = carried_out.copied.iter();
    let copied_lately = copied_lately.filter(|(_, at)| at.elapsed() <= *options.ttl);
    let exempt =
        Exempt { labels: finished.left_by, nodes: copied_lately.map(|(node, _)| *node).collect() };
    let orphans = audit::orphans(&scene.fleet, &exempt).await;

    drop(witnesses);
    let history = History::read_all(&histories).expect("what the clients wrote");
    let beginnings = match options.skew.is_zero() {
        true => Beginnings::none(),
        false => scene.memory.beginnings(keys()),
    };
    let told = Beginnings::told_by(&history);
    let report = Report {
        options: options.clone(),
        seconds,
        faults: carried_out.faults,
        faults_in_vain: carried_out.in_vain,
        exclusion: check(&history),
        tokens: check_tokens(&history, &beginnings),
        strict_regressions: check_tokens(&history, &told).regressions,
        unfounded: scene.memory.beginnings(keys()).unfounded(&history),
        tally: finished.tally,
        clients_failed: finished.failed,
        orphans,
    };
    if let Some(kept) = kept {
        kept.write(&carried_out.done, &scene.memory, &report);
    }
    report
}

/// Does what a client of [`run`] has to: locks and unlocks until its standard input ends.
pub async fn lock(job: &str) {
    client::lock(serde_json::from_str(job).expect("a job")).await;
}
