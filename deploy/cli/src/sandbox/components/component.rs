//! One process of the mesh: started, started again when it ends, stopped and killed on request.

use chrono::{DateTime, Utc};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::health;
use crate::sandbox::namespaces::{Entry, Netns};
use crate::sandbox::supervisor::log_file::LogFile;
use crate::sandbox::supervisor::process::{DEFAULT_GRACE, Exit, Process, Streams};

/// Before a component that ended is started again: doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A component that ran this long starts over with [`FIRST_PAUSE`].
const HEALTHY: Duration = Duration::from_secs(10);
/// Time to drain when stopped on request.
pub const STOP_GRACE: Duration = Duration::from_secs(30);
/// For a process that another one has taken over from: longer than any `--drain` of the tests.
const DRAIN_GRACE: Duration = Duration::from_secs(15 * 60);
/// For a new process to take over.
const UPGRADE: Duration = Duration::from_secs(45);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_FOR: Duration = Duration::from_secs(2);

/// Which process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ComponentName {
    Ca,
    Controller,
    /// Of that node.
    NodeProxy(String),
}

impl fmt::Display for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ca => f.write_str("ca"),
            Self::Controller => f.write_str("controller"),
            Self::NodeProxy(node) => write!(f, "node-proxy/{node}"),
        }
    }
}

impl FromStr for ComponentName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            None if text == "ca" => Ok(Self::Ca),
            None if text == "controller" => Ok(Self::Controller),
            Some(("node-proxy", node)) if !node.is_empty() => Ok(Self::NodeProxy(node.to_owned())),
            _ => Err(format!("`{text}` is no component; there are: ca, controller, node-proxy/NODE")),
        }
    }
}

impl ComponentName {
    /// As part of a file's name.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.to_string().replace('/', "-")
    }
}

/// How to start it.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub name: ComponentName,
    pub entry: Entry,
    pub log: PathBuf,
    pub admin: SocketAddr,
    /// Name of the network namespace it runs in.
    pub namespace: String,
}

/// What can be asked of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// End it properly; it stays down until it is started.
    Stop,
    /// Start it if it is down.
    Start,
    /// Kill it without warning; it stays down until it is started.
    Kill,
    /// Kill it without warning; it is started again at once.
    Crash,
    /// End it properly and start it again.
    Restart,
    /// Start another one beside it, which takes over from it; then it is told to end. Node proxies only.
    Upgrade,
}

/// What is known of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentState {
    pub name: String,
    /// Its process, while it runs.
    pub pid: Option<i32>,
    pub since: Option<DateTime<Utc>>,
    /// How often it was started after the first time.
    pub restarts: u32,
    /// Exit code as of a shell, of its last end.
    pub last_exit: Option<i32>,
    /// Stopped or killed on request.
    pub held_down: bool,
    /// Name of the network namespace it runs in.
    pub namespace: String,
    /// Where health and metrics are served, in that namespace.
    pub admin: SocketAddr,
}

/// An action, and where its outcome goes.
type Order = (Action, oneshot::Sender<Result<(), String>>);

/// A handle to a component's task.
#[derive(Clone)]
pub struct Component {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<ComponentState>,
}

impl Component {
    /// Starts it and keeps it running until the handle is dropped or `end` is called.
    #[must_use]
    pub fn start(recipe: Recipe) -> Self {
        let (orders, receiver) = mpsc::channel(8);
        let (sender, state) = watch::channel(ComponentState {
            name: recipe.name.to_string(),
            pid: None,
            since: None,
            restarts: 0,
            last_exit: None,
            held_down: false,
            namespace: recipe.namespace.clone(),
            admin: recipe.admin,
        });
        tokio::spawn(Task { recipe, orders: receiver, state: sender, log: None }.run());
        Self { orders, state }
    }

    /// Carries out an action and returns when it is done.
    ///
    /// # Errors
    /// Why an upgrade has not come about; the process that ran goes on.
    pub async fn act(&self, action: Action) -> Result<(), String> {
        let (done, wait) = oneshot::channel();
        // Without a task there is nothing left to do.
        match self.orders.send((action, done)).await {
            Ok(()) => wait.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    #[must_use]
    pub fn state(&self) -> ComponentState {
        self.state.borrow().clone()
    }
}

struct Task {
    recipe: Recipe,
    orders: mpsc::Receiver<Order>,
    state: watch::Sender<ComponentState>,
    log: Option<LogFile>,
}

enum Next {
    Start,
    StayDown,
    End,
}

impl Task {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut next = Next::Start;
        loop {
            next = match next {
                Next::End => return,
                Next::StayDown => match self.orders.recv().await {
                    None => Next::End,
                    Some((action, done)) => {
                        let _ = done.send(Ok(()));
                        match action {
                            Action::Stop | Action::Kill => Next::StayDown,
                            Action::Start | Action::Restart | Action::Crash | Action::Upgrade => Next::Start,
                        }
                    }
                },
                Next::Start => {
                    let began = Instant::now();
                    self.state.send_modify(|state| state.held_down = false);
                    let after = self.run_once().await;
                    match after {
                        Some(next) => {
                            pause = FIRST_PAUSE;
                            next
                        }
                        None => {
                            if began.elapsed() >= HEALTHY {
                                pause = FIRST_PAUSE;
                            }
                            let after = self.pause(pause).await;
                            pause = (pause * 2).min(LONGEST_PAUSE);
                            after
                        }
                    }
                }
            };
        }
    }

    /// Runs it until it ends by itself (None) or by an order.
    async fn run_once(&mut self) -> Option<Next> {
        let mut process = match self.spawn().await {
            Ok(process) => process,
            Err(error) => {
                warn!(component = %self.recipe.name, %error, "cannot be started");
                return None;
            }
        };
        let pid = process.id();
        self.state.send_modify(|state| {
            state.pid = Some(pid);
            state.since = Some(Utc::now());
        });
        info!(component = %self.recipe.name, pid, "started");
        loop {
            tokio::select! {
                exit = process.wait() => {
                    let exit = exit.unwrap_or(Exit { code: None, signal: None });
                    warn!(component = %self.recipe.name, code = exit.shell_code(), "ended by itself; starting it again");
                    self.note_end(exit);
                    return None;
                }
                order = self.orders.recv() => {
                    let Some((action, done)) = order else {
                        let _ = process.stop(DEFAULT_GRACE).await;
                        return Some(Next::End);
                    };
                    if action == Action::Start {
                        let _ = done.send(Ok(()));
                        continue;
                    }
                    if action == Action::Upgrade {
                        let _ = done.send(self.upgrade(&mut process).await);
                        continue;
                    }
                    let next = self.carry_out(action, &mut process).await;
                    let _ = done.send(Ok(()));
                    return Some(next);
                }
            }
        }
    }

    async fn carry_out(&self, action: Action, process: &mut Process) -> Next {
        let exit = match action {
            Action::Kill | Action::Crash => {
                process.signal_group(Signal::SIGKILL);
                process.wait().await
            }
            Action::Stop | Action::Restart | Action::Start | Action::Upgrade => {
                process.stop(STOP_GRACE).await
            }
        };
        self.note_end(exit.unwrap_or(Exit { code: None, signal: None }));
        match action {
            Action::Stop | Action::Kill => {
                self.state.send_modify(|state| state.held_down = true);
                Next::StayDown
            }
            Action::Restart | Action::Start | Action::Crash | Action::Upgrade => Next::Start,
        }
    }

    /// As a DaemonSet does with `maxSurge: 1`.
    async fn upgrade(&mut self, process: &mut Process) -> Result<(), String> {
        if !matches!(self.recipe.name, ComponentName::NodeProxy(_)) {
            return Err(format!("{} does not hand over; only node proxies do", self.recipe.name));
        }
        // One that has just been started does not hand over yet, and the new one would find its admin address taken.
        let not_yet =
            |why| format!("{} is not ready, so it has nothing to hand over: {why}", self.recipe.name);
        self.ready(process.id()).await.map_err(not_yet)?;
        let mut new = self.spawn().await.map_err(|error| error.to_string())?;
        let pid = new.id();
        let ready = tokio::select! {
            ready = self.ready(pid) => ready,
            exit = new.wait() => Err(format!("the new process has ended: {exit:?}")),
        };
        if let Err(why) = ready {
            let _ = new.stop(DEFAULT_GRACE).await;
            return Err(format!("{}: {why}; the old process goes on", self.recipe.name));
        }
        let mut old = std::mem::replace(process, new);
        info!(component = %self.recipe.name, pid, "has taken over");
        self.state.send_modify(|state| {
            state.pid = Some(pid);
            state.since = Some(Utc::now());
            state.restarts += 1;
        });
        tokio::spawn(async move { old.stop(DRAIN_GRACE).await });
        Ok(())
    }

    /// Waits until it is that process that says it is ready.
    async fn ready(&self, pid: i32) -> Result<(), String> {
        let path = self.recipe.entry.netns.as_deref().unwrap_or(Path::new("/proc/self/ns/net"));
        let netns = Netns::open(path).map_err(|error| error.to_string())?;
        let asked = format!("/healthz/ready?instance={pid}");
        let begun = Instant::now();
        loop {
            let why = match health::get(&netns, self.recipe.admin, &asked, LOOK_FOR).await {
                Ok((status, _)) if status.is_success() => return Ok(()),
                Ok((_, body)) => String::from_utf8_lossy(&body).trim().to_owned(),
                Err(why) => why,
            };
            if begun.elapsed() > UPGRADE {
                return Err(why);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn note_end(&self, exit: Exit) {
        self.state.send_modify(|state| {
            state.pid = None;
            state.since = None;
            state.last_exit = Some(exit.shell_code());
            state.restarts += 1;
        });
    }

    async fn spawn(&mut self) -> std::io::Result<Process> {
        let log = match &self.log {
            Some(log) => log.clone(),
            None => LogFile::open(&self.recipe.log).await?,
        };
        self.log = Some(log.clone());
        let mut process = Process::spawn(&self.recipe.entry, Streams::captured())?;
        if let Some((stdout, stderr)) = process.output() {
            log.follow(stdout);
            log.follow(stderr);
        }
        Ok(process)
    }

    /// Waits before the next start; orders count meanwhile.
    async fn pause(&mut self, pause: Duration) -> Next {
        tokio::select! {
            () = tokio::time::sleep(pause) => Next::Start,
            order = self.orders.recv() => match order {
                None => Next::End,
                Some((action, done)) => {
                    let next = match action {
                        Action::Stop | Action::Kill => {
                            self.state.send_modify(|state| state.held_down = true);
                            Next::StayDown
                        }
                        Action::Start | Action::Restart | Action::Crash | Action::Upgrade => Next::Start,
                    };
                    let _ = done.send(Ok(()));
                    next
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_written() {
        for text in ["ca", "controller", "node-proxy/node1"] {
            assert_eq!(text.parse::<ComponentName>().unwrap().to_string(), text);
        }
        for text in ["node-proxy", "node-proxy/", "dns", ""] {
            assert!(text.parse::<ComponentName>().is_err(), "{text}");
        }
    }
}
