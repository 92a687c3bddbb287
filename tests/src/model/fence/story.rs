//! The steps of the fence model in words.

use super::super::clients::{Set, members};
use super::state::{Phase, State};
use super::{Fence, Protocol, Step};

/// What happens in `step`.
pub(super) fn tell(fence: &Fence, before: &State, step: &Step) -> String {
    let after = fence.take(before, step);
    match *step {
        Step::Acquire { attempt, server, counted } => {
            let told = told_of(fence, before, attempt, server, counted);
            let outcome = counted.map_or_else(String::new, |counted| {
                format!("; it counts {} and {}", servers(counted), outcome(&after, attempt))
            });
            told + &outcome
        }
        Step::Read { attempt, server, counted } => {
            let value = counter_of(before, server);
            let outcome = counted.map_or_else(String::new, |counted| {
                format!("; it counts {} and {}", servers(counted), outcome(&after, attempt))
            });
            format!(
                "server {} tells {} its counter: {value}{outcome}",
                server + 1,
                fence.clients.name(attempt)
            )
        }
        Step::Confirm { attempt, server } => {
            let token = before.attempts[attempt].token;
            let returned = before.attempts[attempt].phase == Phase::Confirming
                && after.attempts[attempt].phase == Phase::Returned;
            let outcome = if returned { outcome(&after, attempt) } else { String::new() };
            let and = if returned { ", and it " } else { "" };
            format!(
                "server {} takes token {token} of {}{and}{outcome}",
                server + 1,
                fence.clients.name(attempt)
            )
        }
        Step::Tell { server } => {
            format!(
                "server {} tells its counter to who teaches: {}",
                server + 1,
                counter_of(before, server)
            )
        }
        Step::Learn { server } => {
            let value = after.servers[server].counter.value;
            format!("server {} is taught: its counter is {value}", server + 1)
        }
        Step::Crash { server } => format!("server {} loses its data", server + 1),
    }
}

fn told_of(
    fence: &Fence,
    before: &State,
    attempt: usize,
    server: usize,
    counted: Option<Set>,
) -> String {
    let here = &before.servers[server];
    let value = (here.counter.value + 1).max(fence.proposals[attempt]);
    let late = !matches!(before.attempts[attempt].phase, Phase::Idle | Phase::Asking);
    let expired = match here.holder {
        Some(holder) => {
            format!("the lock of {} is gone; ", fence.clients.name(usize::from(holder)))
        }
        None => String::new(),
    };
    let ended = before.attempts_that(Phase::is_under_way) & here.quarantine;
    let back = match ended {
        0 => String::new(),
        _ => format!("votes again, too late for {}, and ", fence.clients.names(ended)),
    };
    let late = if late && counted.is_none() { ", late" } else { "" };
    let known = if here.counter.known { "" } else { " (it does not know what was before)" };
    format!(
        "at server {}, {expired}it {back}grants {} the lock with counter {value}{known}{late}",
        server + 1,
        fence.clients.name(attempt)
    )
}

fn counter_of(state: &State, server: usize) -> String {
    let counter = state.servers[server].counter;
    match counter.known {
        true => counter.value.to_string(),
        false => format!("unknown (at least {})", counter.value),
    }
}

/// What the client does after it has decided.
fn outcome(after: &State, attempt: usize) -> String {
    let attempt = &after.attempts[attempt];
    match attempt.phase {
        Phase::Returned => format!("RETURNS with token {}", attempt.token),
        Phase::Confirming => {
            let basis = if attempt.by_clock { ", by its clock only" } else { "" };
            format!("asks to take token {}{basis}", attempt.token)
        }
        Phase::Reading => "asks all for their counters".to_owned(),
        Phase::Idle | Phase::Asking | Phase::Failed => "can no longer win".to_owned(),
    }
}

fn servers(set: Set) -> String {
    let names: Vec<String> = members(set).map(|server| (server + 1).to_string()).collect();
    names.join("+")
}
