//! One container: started, watched, probed, started again, stopped.

use culvert_objects::types::{Container, Probe, RestartPolicy};
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::board::{Board, Readiness, Slot};
use super::probe::{Counter, Target, Verdict};
use super::stop::Stop;
use crate::sandbox::namespaces::Entry;
use crate::sandbox::supervisor::log_file::LogFile;
use crate::sandbox::supervisor::process::{Exit, Process, Streams};

/// Before a container that ended is started again: doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A container that ran this long starts over with [`FIRST_PAUSE`].
const HEALTHY: Duration = Duration::from_secs(60);
/// A container that was not ready yet is asked this often at first, then ever less often up to its probe's period: a
/// kubelet leaves it waiting for a whole period.
const EAGER: Duration = Duration::from_millis(100);

/// One container of a pod.
pub struct Runner {
    pub board: Arc<Board>,
    pub slot: Slot,
    pub container: Container,
    pub policy: RestartPolicy,
    pub log: PathBuf,
    pub stop: Stop,
    /// Fires when the container has started, as its startup probe says.
    pub has_started: CancellationToken,
    pub place: Place,
}

/// How the container's place in the world is made, anew for each start: variables may have changed.
pub type Place = Arc<dyn Fn() -> Result<Target, String> + Send + Sync>;

/// Why a runner is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It ended and is not to be started again.
    Ended(Exit),
    /// The pod goes.
    Stopped,
}

impl Runner {
    /// Runs the container until it is done.
    pub async fn run(&self) -> Done {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let exit = match self.run_once().await {
                Ok(exit) => exit,
                Err(message) => {
                    let reason = "CreateContainerError";
                    self.board.update(|facts| facts.waiting(self.slot, reason, message)).await;
                    if self.pause(FIRST_PAUSE).await == Interrupted::Yes {
                        return Done::Stopped;
                    }
                    continue;
                }
            };
            if self.stop.is_asked() {
                return Done::Stopped;
            }
            let again = match self.policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => exit.code != Some(0),
                RestartPolicy::Never => false,
            };
            if !again {
                return Done::Ended(exit);
            }
            if began.elapsed() >= HEALTHY {
                pause = FIRST_PAUSE;
            }
            let message = format!("ended with exit code {}; starts again in {pause:?}", exit.shell_code());
            self.board.update(|facts| facts.waiting(self.slot, "CrashLoopBackOff", message)).await;
            if self.pause(pause).await == Interrupted::Yes {
                return Done::Stopped;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn run_once(&self) -> Result<Exit, String> {
        let target = (self.place)()?;
        let mut process = self.spawn(&target.entry).await.map_err(|error| error.to_string())?;
        let id = process.id().to_string();
        self.board.update(|facts| facts.running(self.slot, &id)).await;
        let (exit, why) = tokio::select! {
            exit = process.wait() => (exit, None),
            () = self.stop.asked() => (self.end(&target, &mut process).await, None),
            why = self.watch(&target) => (self.end(&target, &mut process).await, Some(why)),
        };
        let exit = exit.map_err(|error| format!("the process cannot be waited for: {error}"))?;
        self.board.update(|facts| facts.terminated(self.slot, exit, why)).await;
        Ok(exit)
    }

    async fn end(&self, target: &Target, process: &mut Process) -> io::Result<Exit> {
        let grace = target.before_stop(self.stop.grace()).await;
        process.stop(grace).await
    }

    async fn spawn(&self, entry: &Entry) -> io::Result<Process> {
        let log = LogFile::open(&self.log).await?;
        let mut process = Process::spawn(entry, Streams::captured())?;
        if let Some((stdout, stderr)) = process.output() {
            log.follow(stdout);
            log.follow(stderr);
        }
        Ok(process)
    }

    /// Probes the running container. Returns when it must be killed, with the reason.
    async fn watch(&self, target: &Target) -> String {
        if let Some(probe) = &self.container.startup_probe
            && let Err(why) = self.wait_for_startup(target, probe).await
        {
            return why;
        }
        self.board.update(|facts| facts.started(self.slot)).await;
        self.has_started.cancel();
        tokio::select! {
            never = self.follow_readiness(target) => match never {},
            why = self.follow_liveness(target) => why,
        }
    }

    async fn wait_for_startup(&self, target: &Target, probe: &Probe) -> Result<(), String> {
        let mut counter = Counter::new(probe);
        tokio::time::sleep(probe.initial_delay()).await;
        loop {
            let attempt = target.attempt(probe).await;
            match counter.note(&attempt) {
                Some(Verdict::Good) => return Ok(()),
                Some(Verdict::Bad) => {
                    return Err(format!("StartupProbeFailed: {}", attempt.err().unwrap_or_default()));
                }
                None => tokio::time::sleep(probe.period()).await,
            }
        }
    }

    /// Keeps the container's readiness up to date, for as long as it runs.
    async fn follow_readiness(&self, target: &Target) -> Infallible {
        let Some(probe) = &self.container.readiness_probe else {
            self.board.update(|facts| facts.ready(self.slot, Readiness::Ready)).await;
            return std::future::pending().await;
        };
        let mut counter = Counter::new(probe);
        let mut interval = EAGER.min(probe.period());
        let mut ready = Readiness::NotReady;
        tokio::time::sleep(probe.initial_delay()).await;
        loop {
            let verdict = match counter.note(&target.attempt(probe).await) {
                Some(Verdict::Good) => Readiness::Ready,
                Some(Verdict::Bad) => Readiness::NotReady,
                None => ready,
            };
            if verdict != ready {
                ready = verdict;
                self.board.update(|facts| facts.ready(self.slot, ready)).await;
            }
            interval =
                if ready == Readiness::Ready { probe.period() } else { (interval * 2).min(probe.period()) };
            tokio::time::sleep(interval).await;
        }
    }

    /// Returns when the container must be killed.
    async fn follow_liveness(&self, target: &Target) -> String {
        let Some(probe) = &self.container.liveness_probe else { return std::future::pending().await };
        let mut counter = Counter::new(probe);
        tokio::time::sleep(probe.initial_delay()).await;
        loop {
            let attempt = target.attempt(probe).await;
            if counter.note(&attempt) == Some(Verdict::Bad) {
                return format!("LivenessProbeFailed: {}", attempt.err().unwrap_or_default());
            }
            tokio::time::sleep(probe.period()).await;
        }
    }

    async fn pause(&self, pause: Duration) -> Interrupted {
        tokio::select! {
            () = self.stop.asked() => Interrupted::Yes,
            () = tokio::time::sleep(pause) => Interrupted::No,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Interrupted {
    Yes,
    No,
}
