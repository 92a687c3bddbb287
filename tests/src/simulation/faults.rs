//! What goes wrong in a run.

use std::time::Duration;

use fastrand::Rng;
use redlock_core::testing::Node;
use tokio::time::{Instant, sleep};

use super::{LATEST, Mistake, TTL, World};

/// For how long the locks and counters that a server lost are missed.
const MOURNING: Duration = Duration::from_millis(5_500);

/// What is spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// Fewer than a majority lose their data at once.
    Merciful,
    /// Any number may.
    Merciless,
    /// None does, but their clocks are set.
    SetsClocks,
}

/// Whoever makes things go wrong.
pub(super) struct Nemesis<'w> {
    world: &'w World,
    rng: Rng,
    /// When which server lost its data last.
    losses: Vec<Option<Instant>>,
    mood: Mood,
}

impl<'w> Nemesis<'w> {
    pub(super) fn new(world: &'w World, mood: Mood, rng: Rng) -> Self {
        let losses = vec![None; world.cluster.nodes().len()];
        Self { world, rng, losses, mood }
    }

    pub(super) async fn rage(mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let pause = match self.mood {
                Mood::SetsClocks => self.millis(1, 30),
                Mood::Merciful | Mood::Merciless => self.millis(10, 800),
            };
            sleep(pause).await;
            self.strike();
        }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from..=to))
    }

    fn late(&mut self) -> Duration {
        self.millis(60, LATEST.as_millis() as u64)
    }

    fn strike(&mut self) {
        if self.mood == Mood::SetsClocks && self.rng.u8(..32) > 0 {
            return self.set_a_clock();
        }
        let number = self.rng.usize(..self.losses.len());
        let node = self.world.cluster.node(number);
        let twin = (number < 2 && self.world.mistake == Some(Mistake::OneServerTwice))
            .then(|| self.world.cluster.node(1 - number));
        let text = match self.rng.u8(..20) {
            0..=2 => {
                node.pause();
                self.later(number, 1_200, Node::resume);
                "stands still".to_owned()
            }
            3 | 4 => {
                let delay = self.millis(1, 60);
                node.delay(delay);
                self.later(number, 3_000, |node| node.delay(Duration::ZERO));
                format!("is slower by {delay:?}")
            }
            5 => {
                let delay = self.millis(60, 700);
                node.delay(delay);
                self.later(number, 300, |node| node.delay(Duration::ZERO));
                format!("is far slower by {delay:?}")
            }
            6 => {
                node.lose_requests(true);
                self.later(number, 1_000, |node| node.lose_requests(false));
                "loses requests".to_owned()
            }
            7 | 8 => {
                node.lose_replies(true);
                self.later(number, 1_000, |node| node.lose_replies(false));
                "loses replies".to_owned()
            }
            9..=11 => {
                let late = self.late();
                node.deliver_late(late);
                format!("hears the next command {late:?} late")
            }
            12 => {
                node.cut();
                "is cut off".to_owned()
            }
            13 => {
                for node in self.world.cluster.nodes() {
                    let late = self.late();
                    node.deliver_late(late);
                }
                "and all others hear the next command late".to_owned()
            }
            14 | 15 => {
                node.forget_scripts();
                "forgot its scripts".to_owned()
            }
            16 => {
                let calls = self.rng.usize(..4);
                node.tear_after(calls);
                format!("breaks a connection after {calls} calls")
            }
            loss if self.may_lose(number) => {
                for node in [Some(node), twin].into_iter().flatten() {
                    match loss {
                        17 => node.flush(),
                        _ => node.restart_empty(),
                    }
                }
                self.losses[number] = Some(Instant::now());
                "lost its data".to_owned()
            }
            _ => return,
        };
        self.world.trace.fault(format_args!("node {number} {text}"));
    }

    fn set_a_clock(&mut self) {
        let number = self.rng.usize(..self.losses.len());
        let node = self.world.cluster.node(number);
        // What a lock may lose between two of its round trips has time to be taken by another.
        let delay = self.millis(0, 20);
        node.delay(delay);
        let millis = match self.rng.u8(..8) {
            0 => self.rng.i64(-1_000..=0),
            _ => self.rng.i64(0..=5_000),
        };
        node.step_clock(millis * 1_000);
        self.world.trace.fault(format_args!("the clock of node {number} is set by {millis} ms"));
    }

    /// Whether fewer than a majority would have lost their data.
    fn may_lose(&self, number: usize) -> bool {
        let lost =
            |loss: &Option<Instant>| loss.is_some_and(|loss| loss.elapsed() < MOURNING + TTL);
        let others = self.losses.iter().enumerate().filter(|(other, _)| *other != number);
        let others = others.filter(|(_, loss)| lost(loss)).count();
        let limit = self.losses.len().div_ceil(2) - 1;
        match self.mood {
            Mood::Merciful => others < limit,
            Mood::Merciless => true,
            Mood::SetsClocks => false,
        }
    }

    /// Ends a fault some time from now.
    fn later(&mut self, number: usize, most: u64, undo: impl FnOnce(&Node) + Send + 'static) {
        let (node, after) = (self.world.cluster.node(number), self.millis(1, most));
        tokio::spawn(async move {
            sleep(after).await;
            undo(&node);
        });
    }
}
