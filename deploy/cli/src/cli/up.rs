//! `culvert sandbox up` and `down`.

use anyhow::{Context, anyhow, bail};
use clap::Args;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::client;
use crate::sandbox::cluster::MAX_NODES;
use crate::sandbox::components::Binaries;
use crate::sandbox::control::place::Place;
use crate::sandbox::control::protocol::{Request, Response, SourceFile};
use crate::sandbox::control::wire::Connection;
use crate::sandbox::namespaces::INIT_COMMAND;
use crate::sandbox::supervisor::SuperviseArguments;

/// Laying the network and starting the components takes well below a second.
const START: Duration = Duration::from_secs(30);
/// Pods and components are given seconds.
const END: Duration = Duration::from_secs(20);
/// A killed keeper takes everything along at once.
const KILLED: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub struct UpArgs {
    /// Manifests to apply: files, directories, or - for standard input.
    #[arg(short, long = "file", value_name = "FILE|DIR")]
    file: Vec<PathBuf>,
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: u8,
    /// Return when everything is ready and leave the sandbox running.
    #[arg(long)]
    detach: bool,
    /// How long to wait for everything to be ready.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    wait: Duration,
    /// Where culvert-ca, culvert-controller, culvert-node-proxy and culvert-echo are; beside this program by default.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Trust domain of the mesh.
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// Log filter of the sandbox and of the mesh's processes.
    #[arg(long, value_name = "FILTER", env = "CULVERT_LOG")]
    log: Option<String>,
    /// One more argument for every process of a program of the mesh, as culvert-ca=--max-lifetime=1m; repeatable.
    #[arg(long = "component-arg", value_name = "PROGRAM=ARGUMENT", value_parser = component_argument)]
    component_args: Vec<(String, String)>,
}

/// Brings a sandbox up; without `--detach` keeps it until a signal or `down`.
///
/// # Errors
/// What went wrong and its remedy.
pub async fn up(name: &str, arguments: UpArgs) -> anyhow::Result<()> {
    let files = client::read_manifests(&arguments.file)?;
    let bin_dir = arguments.bin_dir.as_ref().map(std::path::absolute).transpose()?;
    Binaries::locate(bin_dir.as_deref())?.check()?;
    let place = Place::of(name)?;
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (program, argument) in &arguments.component_args {
        extra.entry(program.clone()).or_default().push(argument.clone());
    }
    let supervise = SuperviseArguments {
        name: name.to_owned(),
        nodes: arguments.nodes,
        bin_dir,
        trust_domain: arguments.trust_domain.clone(),
        log: arguments.log.clone(),
        extra,
    };
    let mut sandbox = Sandbox::start(place, &supervise).await?;
    if let Err(error) = sandbox.apply(&files).await {
        sandbox.end().await?;
        return Err(error);
    }
    // Something that does not become ready can only be looked at while it is there.
    let ready = sandbox.wait_until_ready(arguments.wait).await;
    if arguments.detach {
        client::ask(&sandbox.place, &Request::Release).await?;
        return ready.map_err(|error| {
            anyhow!(
                "{error:#}\nthe sandbox goes on running: look at `culvert sandbox status --name {name}`, end it with \
                 `culvert sandbox down --name {name}`"
            )
        });
    }
    match ready {
        Ok(()) => eprintln!("sandbox {name} is ready; Ctrl-C ends it"),
        Err(error) => eprintln!("sandbox {name} is up, but {error:#}\nCtrl-C ends it"),
    }
    sandbox.keep().await
}

/// Ends a sandbox and removes what a killed one left.
///
/// # Errors
/// When it cannot be ended.
pub async fn down(name: &str) -> anyhow::Result<()> {
    let place = Place::of(name)?;
    let keeper = place.keeper();
    let asked = match place.connect() {
        Ok(_) => client::ask_within(&place, &Request::Down, END).await.map(drop),
        Err(_) if keeper.is_none() => {
            match place.clear()? {
                true => eprintln!("removed what a killed sandbox named {name} left behind"),
                false => eprintln!("no sandbox named {name} is running"),
            }
            return Ok(());
        }
        Err(error) => Err(error.into()),
    };
    if let Some(keeper) = keeper {
        if let Err(error) = asked {
            eprintln!("the sandbox does not end by itself ({error:#}); killing it");
            kill(keeper)?;
        }
        let gone = timeout(KILLED, async {
            while place.keeper() == Some(keeper) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if gone.await.is_err() {
            kill(keeper)?;
        }
    } else {
        asked?;
    }
    place.clear()?;
    Ok(())
}

/// The supervisor dies with its keeper, and everything else with the supervisor.
fn kill(keeper: u32) -> anyhow::Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(keeper)?);
    match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("kill the sandbox's keeper"),
    }
}

/// A sandbox that this process holds.
struct Sandbox {
    place: Place,
    keeper: Child,
    /// While this is open, and not released, the sandbox lives.
    hold: Connection,
}

impl Sandbox {
    async fn start(place: Place, arguments: &SuperviseArguments) -> anyhow::Result<Self> {
        let listener = place.claim()?;
        let mut log = OpenOptions::new().create(true).append(true).read(true).open(place.log())?;
        // Before the sandbox is there, so that it never lives without its holder.
        let hold = client::from_stream(place.connect()?)?;
        hold.send(&Request::Hold, &[]).await?;
        let mut keeper = Command::new(std::env::current_exe().context("where this program is")?)
            .args([INIT_COMMAND, "keep", &arguments.name, &serde_json::to_string(arguments)?])
            .stdin(std::os::fd::OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(log.try_clone()?)
            .current_dir("/")
            .spawn()
            .context("start the sandbox's keeper")?;
        place.write_pid(keeper.id())?;
        match timeout(START, client::answer(&hold)).await {
            Ok(Ok(Response::Done)) => Ok(Self { place, keeper, hold }),
            Ok(_) => {
                let _ = keeper.wait();
                place.clear()?;
                bail!("the sandbox did not start: {}", said(&mut log))
            }
            Err(_) => {
                let _ = keeper.kill().and_then(|()| keeper.wait());
                place.clear()?;
                bail!("the sandbox did not start within {} s: {}", START.as_secs(), said(&mut log))
            }
        }
    }

    async fn apply(&self, files: &[SourceFile]) -> anyhow::Result<()> {
        if !files.is_empty() {
            let request = Request::Apply { files: files.to_vec() };
            let (text, _) = client::report(client::ask(&self.place, &request).await?)?;
            eprint!("{text}");
        }
        Ok(())
    }

    async fn wait_until_ready(&self, limit: Duration) -> anyhow::Result<()> {
        let request = Request::Wait { seconds: limit.as_secs() };
        client::ask_within(&self.place, &request, limit + START).await.map(drop)
    }

    /// Until a signal, or until the sandbox has ended.
    async fn keep(mut self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
            _ = self.hold.receive() => {}
        }
        self.end().await
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        if self.place.connect().is_ok()
            && let Err(error) = client::ask_within(&self.place, &Request::Down, END).await
        {
            eprintln!("the sandbox did not say that it ended: {error:#}");
        }
        let gone = timeout(KILLED, async {
            while matches!(self.keeper.try_wait(), Ok(None)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if gone.await.is_err() {
            self.keeper.kill().and_then(|()| self.keeper.wait()).context("kill the sandbox's keeper")?;
        }
        self.place.clear()?;
        Ok(())
    }
}

/// The end of what keeper and supervisor said.
fn said(log: &mut File) -> String {
    let mut text = String::new();
    let _ = log.seek(SeekFrom::Start(0)).and_then(|_| log.read_to_string(&mut text));
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("\n");
    last.trim_start_matches("error: ").to_owned()
}

/// Reads `90`, `90s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(number) => (number, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is no time; write for example 90s or 2m"))?;
    Ok(Duration::from_secs(number * unit))
}

/// Programs of which the mesh consists.
const COMPONENTS: [&str; 3] = ["culvert-ca", "culvert-controller", "culvert-node-proxy"];

/// Reads `culvert-ca=--max-lifetime=1m`.
fn component_argument(text: &str) -> Result<(String, String), String> {
    let (program, argument) = text.split_once('=').unwrap_or((text, ""));
    if !COMPONENTS.contains(&program) || argument.is_empty() {
        return Err(format!(
            "`{text}` is not PROGRAM=ARGUMENT with PROGRAM one of {}",
            COMPONENTS.join(", ")
        ));
    }
    Ok((program.to_owned(), argument.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_for_components_name_their_program() {
        let read = component_argument("culvert-ca=--max-lifetime=1m").unwrap();
        assert_eq!(read, ("culvert-ca".to_owned(), "--max-lifetime=1m".to_owned()));
        assert!(component_argument("nginx=-t").is_err() && component_argument("culvert-ca").is_err());
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        assert!(duration("soon").unwrap_err().contains("90s"));
    }
}
