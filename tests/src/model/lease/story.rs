//! The steps of the lease model in words.

use super::state::{Phase, State};
use super::{Lease, Protocol, Step};

/// What happens in `step`.
pub(super) fn tell(lease: &Lease, before: &State, step: &Step) -> String {
    let after = lease.take(before, step);
    let name = |attempt: usize| lease.clients.name(attempt);
    let mut told = match *step {
        Step::Tick { missed: 0 } => "a tick".to_owned(),
        Step::Tick { missed } => {
            format!("a tick, which the clock of {} misses", lease.clients.names(missed))
        }
        Step::Gain { server } => format!("the clock of server {} gains a tick", server + 1),
        Step::Crash { server } => format!("server {} loses its data", server + 1),
        Step::Acquire { attempt, server } => {
            let late = match before.attempts[attempt].phase {
                Phase::Idle | Phase::Asking => "",
                Phase::Holding | Phase::Ended => ", late",
            };
            format!("server {} grants {} the lock{late}", server + 1, name(attempt))
        }
        Step::SendExtend { attempt } => format!("{} asks for an extension", name(attempt)),
        Step::Extend { attempt, server } => {
            format!("server {} extends the lock of {}", server + 1, name(attempt))
        }
        Step::End { attempt } if before.attempts[attempt].phase == Phase::Holding => {
            format!("{} releases the lock", name(attempt))
        }
        Step::End { attempt } => format!("{} gives up and sends releases", name(attempt)),
        Step::Release { attempt, server } => {
            format!("the release of {} deletes the key on server {}", name(attempt), server + 1)
        }
    };
    for (server, here) in before.servers.iter().enumerate() {
        let now = &after.servers[server];
        let by_time = matches!(step, Step::Tick { .. } | Step::Gain { .. });
        match here.holder {
            Some(holder) if by_time && now.holder.is_none() => {
                let name = name(usize::from(holder));
                told += &format!("; the lock of {name} on server {} expires", server + 1);
            }
            _ => {}
        }
        if here.is_quarantined && !now.is_quarantined {
            told += &format!("; the quarantine of server {} ends", server + 1);
        }
    }
    for (attempt, now) in after.attempts.iter().enumerate() {
        match (before.attempts[attempt].phase, now.phase) {
            (Phase::Asking, Phase::Holding) => {
                told += &format!(", and {} HOLDS the lock", name(attempt));
            }
            (Phase::Holding, Phase::Ended) if matches!(step, Step::Tick { .. }) => {
                told += &format!("; the lease of {} ends", name(attempt));
            }
            (Phase::Asking, Phase::Ended) if matches!(step, Step::Tick { .. }) => {
                told += &format!("; it is too late for {}", name(attempt));
            }
            _ => {}
        }
        if before.attempts[attempt].extension.is_some()
            && now.extension.is_none()
            && now.phase == Phase::Holding
        {
            told += &format!(", and {} holds it for longer", name(attempt));
        }
    }
    told
}
