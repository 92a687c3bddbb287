//! A node that is killed under load, and started again with no data.

use std::fmt;
use std::time::{Duration, Instant};

use redlock_core::{NodeAnswer, Redlock};
use redlock_tests::{Fleet, all_vote, eventually};
use serde::Serialize;

use super::NODES;
use crate::contender::{Contender, Mode, set_up, settings};
use crate::goal::{Bound, Goal};
use crate::interleave::interleave;
use crate::load::load;
use crate::scenario::{Result, Scale};

/// Short, as a guarded server that lost its data does not vote for as long as a lock may last.
const TTL: Duration = Duration::from_secs(1);

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize)]
pub(super) struct Restart {
    mode: Mode,
    tasks: usize,
    cycles_per_second_while_dead: f64,
    failed_while_dead: u64,
    failed_while_it_comes_back: u64,
    /// From its start until it answers, at most: it may be quarantined then.
    answers_after_millis: f64,
    /// Until it votes, at most.
    votes_after_millis: f64,
}

/// What happened in one round.
struct Seen {
    cycles_per_second: f64,
    failed_while_dead: u64,
    failed_after: u64,
    answers_after: Duration,
    votes_after: Duration,
}

pub(super) async fn measure(mode: Mode, tasks: usize, scale: Scale) -> Result<Restart> {
    let fleet = Fleet::start(NODES).await;
    let redlock = set_up(settings(&fleet.urls(), mode).ttl(TTL)).await?;
    let contender = Contender::Ours(redlock.clone());
    let rounds = interleave(1, scale.rounds, async |_| {
        fleet.kill(0);
        let dead = load(&fleet, &contender, tasks, scale.length).await?;
        fleet.restart(0).await;
        let (after, (answers_after, votes_after)) =
            tokio::join!(load(&fleet, &contender, tasks, 2 * TTL), back_in_use(&redlock));
        all_vote(&redlock).await;
        Ok(Seen {
            cycles_per_second: dead.cycles_per_second,
            failed_while_dead: dead.failed,
            failed_after: after?.failed,
            answers_after,
            votes_after,
        })
    });
    let rounds = rounds.await?;
    let millis = |of: fn(&Seen) -> Duration| {
        let longest = rounds.of(0).iter().map(of).max().unwrap_or_default();
        longest.as_secs_f64() * 1e3
    };
    Ok(Restart {
        mode,
        tasks,
        cycles_per_second_while_dead: rounds.median(0, |seen| seen.cycles_per_second),
        failed_while_dead: rounds.of(0).iter().map(|seen| seen.failed_while_dead).sum(),
        failed_while_it_comes_back: rounds.of(0).iter().map(|seen| seen.failed_after).sum(),
        answers_after_millis: millis(|seen| seen.answers_after),
        votes_after_millis: millis(|seen| seen.votes_after),
    })
}

/// How long it takes until the first node answers, and until it votes.
async fn back_in_use(redlock: &Redlock) -> (Duration, Duration) {
    let start = Instant::now();
    let mut answers_after = None;
    eventually(PATIENCE, "the node that was started again", async || {
        let health = redlock.health().await.map_err(|error| error.to_string())?;
        let node = &health[0].nodes[0];
        match node.answer {
            NodeAnswer::NotHeld | NodeAnswer::Held { .. } | NodeAnswer::Granted => Ok(()),
            NodeAnswer::Quarantined { .. } => {
                answers_after.get_or_insert_with(|| start.elapsed());
                Err(node.to_string())
            }
            _ => Err(node.to_string()),
        }
    })
    .await;
    let votes_after = start.elapsed();
    (answers_after.unwrap_or(votes_after), votes_after)
}

impl Restart {
    pub(super) fn goals(&self) -> Vec<Goal> {
        let goal = |what: &str, wanted, seen| {
            Goal::new(format!("{}: {what}, {} tasks", self.mode, self.tasks), wanted, seen)
        };
        let mut goals = vec![
            goal("failed locks, one node dead", Bound::AtMost(0.0), self.failed_while_dead as f64),
            goal(
                "failed locks, one node comes back",
                Bound::AtMost(0.0),
                self.failed_while_it_comes_back as f64,
            ),
            goal(
                "ms until a restarted node answers",
                Bound::AtMost(1e3),
                self.answers_after_millis,
            ),
        ];
        if self.mode == Mode::Plain {
            let name = "ms until a restarted node votes";
            goals.push(goal(name, Bound::AtMost(1e3), self.votes_after_millis));
        }
        goals
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} tasks, one node dead: {} locks failed, {:.0} cycles/s; started again, it answers \
             after {:.0} ms and votes after {:.0} ms: {} locks failed",
            self.mode,
            self.tasks,
            self.failed_while_dead,
            self.cycles_per_second_while_dead,
            self.answers_after_millis,
            self.votes_after_millis,
            self.failed_while_it_comes_back,
        )
    }
}
