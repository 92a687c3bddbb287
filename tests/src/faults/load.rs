//! The client processes, as the harness sees them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::client::{ABANDONED, Job, READY, Tally};
use super::network::Network;
use super::{CLIENT, Options};

/// How long a client may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Load {
    program: PathBuf,
    places: Vec<Mutex<Place>>,
    killed: Mutex<Vec<String>>,
    ended: Mutex<Finished>,
}

/// Where one client after the other has its connections.
#[derive(Debug)]
struct Place {
    job: Job,
    generation: u64,
    process: Process,
}

#[derive(Debug)]
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What is left when all clients have ended.
#[derive(Debug, Default)]
pub(super) struct Finished {
    pub(super) tally: Tally,
    /// Clients that did not end as they should.
    pub(super) failed: usize,
    /// The labels of those whose locks may be left: nobody was there to release them.
    pub(super) left_by: Vec<String>,
}

impl Load {
    /// Starts the clients and waits until the servers have answered each.
    pub(super) async fn start(
        options: &Options,
        network: &Network,
        program: &Path,
        histories: &Path,
    ) -> Self {
        let mut random = fastrand::Rng::with_seed(options.seed);
        let mut places = Vec::new();
        for client in 0..options.clients {
            let name = format!("c{client}");
            let job = Job {
                history: histories.join(&name),
                name,
                urls: network.urls(client),
                guard: options.guard,
                epoch: 0,
                ttl: *options.ttl,
                hold: options.hold(),
                keys: options.keys,
                hot: options.hot.unwrap_or(options.keys).min(options.keys),
                tasks: options.tasks,
                clock_ahead: match options.max_clock_skew {
                    Some(_) => 0.0,
                    None => options.skew.as_secs_f64() * (2.0 * random.f64() - 1.0),
                },
                max_clock_skew: options.max_clock_skew.map(Into::into),
                abandon: options.locks_may_be_left(),
                seed: random.u64(..1 << 53),
            };
            let process = Process::start(program, &job);
            places.push(Mutex::new(Place { job, generation: 0, process }));
        }
        for place in &mut places {
            let said = place.get_mut().process.says().await;
            assert_eq!(said.as_deref(), Some(READY), "a client is ready");
        }
        let (killed, ended) = (Mutex::default(), Mutex::default());
        Self { program: program.to_owned(), places, killed, ended }
    }

    /// Stops a client for a while (SIGSTOP, SIGCONT).
    pub(super) async fn pause(&self, client: usize, lasts: Duration) {
        let place = self.places[client].lock().await;
        place.process.signal(Signal::STOP);
        sleep(lasts).await;
        place.process.signal(Signal::CONT);
    }

    /// Kills a client and starts another one in its place.
    pub(super) async fn replace(&self, client: usize) {
        let mut place = self.places[client].lock().await;
        place.process.child.kill().await.expect("SIGKILL reaches the client");
        self.killed.lock().await.push(place.job.name.clone());
        place.start_another(client, &self.program);
    }

    /// Ends one client after the other, and starts others in their places that use the servers
    /// under this number.
    pub(super) async fn change_to(&self, epoch: u32) {
        for (client, place) in self.places.iter().enumerate() {
            let mut place = place.lock().await;
            drop(place.process.child.stdin.take());
            let told = place.process.end().await;
            self.ended.lock().await.count(told);
            place.job.epoch = epoch;
            place.start_another(client, &self.program);
        }
    }

    /// Tells all clients to release what they hold and to end, and waits for that.
    pub(super) async fn finish(&self) -> Finished {
        let mut finished = std::mem::take(&mut *self.ended.lock().await);
        let mut places = Vec::new();
        for place in &self.places {
            let mut place = place.lock().await;
            drop(place.process.child.stdin.take());
            places.push(place);
        }
        for mut place in places {
            finished.count(place.process.end().await);
        }
        finished.left_by = self.killed.lock().await.clone();
        finished.left_by.push(ABANDONED.to_owned());
        finished
    }
}

impl Finished {
    fn count(&mut self, told: Option<Tally>) {
        match told {
            Some(tally) => self.tally += tally,
            None => self.failed += 1,
        }
    }
}

impl Place {
    fn start_another(&mut self, client: usize, program: &Path) {
        self.generation += 1;
        self.job.name = format!("c{client}.{}", self.generation);
        self.job.history = self.job.history.with_file_name(&self.job.name);
        self.job.seed += 1;
        self.process = Process::start(program, &self.job);
    }
}

impl Process {
    fn start(program: &Path, job: &Job) -> Self {
        let job = serde_json::to_string(job).expect("JSON");
        let mut child = Command::new(program)
            .args([CLIENT, &job])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the client's program starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, signal).expect("a signal reaches the client");
        }
    }

    /// The next line that the client writes.
    async fn says(&mut self) -> Option<String> {
        timeout(PATIENCE, self.lines.next_line()).await.ok()?.ok()?
    }

    /// What the client had to say at its end, if it ended as it should.
    async fn end(&mut self) -> Option<Tally> {
        let mut last = None;
        while let Some(line) = self.says().await {
            last = Some(line);
        }
        let status = timeout(PATIENCE, self.child.wait()).await.ok()?.ok()?;
        if !status.success() {
            return None;
        }
        serde_json::from_str(&last?).ok()
    }
}
