//! Processes that outlived their container: started by it, in a process group of their own.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::sandbox::namespaces::Netns;

/// Killed processes vanish at once; their children may have been born meanwhile.
const ROUNDS: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(10);

/// Kills every process in the network namespace and waits until there is none.
pub async fn kill_all_in(netns: &Netns) {
    for _ in 0..ROUNDS {
        let left = processes_in(netns);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

/// Everybody but this process, which has threads in there while it opens sockets, and zombies, which are in none.
fn processes_in(netns: &Netns) -> Vec<i32> {
    let Ok(wanted) = fs::metadata(netns.path()) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
        })
        .collect()
}
