//! Process 1 inherits every process whose parent has ended, and must wait for it. Children of our own are waited for
//! where they were started, within moments; a zombie still there at the next look is an inherited one.

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fs;
use std::time::Duration;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Reaps inherited processes for as long as the sandbox lives.
pub async fn reap() {
    let mut seen = HashSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = zombies();
        for pid in now.intersection(&seen) {
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        seen = now;
    }
}

fn zombies() -> HashSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return HashSet::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| is_zombie_of(&stat, own))
        })
        .collect()
}

/// Whether a line of `/proc/PID/stat` is that of a zombie with that parent. The name, in parentheses, may hold anything.
fn is_zombie_of(stat: &str, parent: i32) -> bool {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_whitespace();
    fields.next() == Some("Z") && fields.next().and_then(|field| field.parse().ok()) == Some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zombies_are_told_by_state_and_parent() {
        assert!(is_zombie_of("42 (sh) Z 1 42 42 0", 1));
        assert!(is_zombie_of("42 (a ) S 1 b) Z 1 42", 1));
        assert!(!is_zombie_of("42 (sh) S 1 42 42 0", 1));
        assert!(!is_zombie_of("42 (sh) Z 7 42 42 0", 1));
    }
}
