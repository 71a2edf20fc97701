//! The processes of pods.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cgroups::pods_of;

/// One process of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    /// When it began, in ticks since the machine did.
    started: u64,
    id: u32,
}

impl Process {
    /// Where its network namespace is.
    pub fn namespace(self, proc: &Path) -> PathBuf {
        proc.join(self.id.to_string()).join("ns/net")
    }
}

/// The processes of those pods whose uid is wanted, the oldest first: that is the one that holds the pod's namespaces.
///
/// # Errors
/// When the directory cannot be read; processes end at any time, and are then left out.
pub(super) fn of_pods(
    proc: &Path,
    wanted: impl Fn(&str) -> bool,
) -> io::Result<HashMap<String, Vec<Process>>> {
    let mut found: HashMap<String, Vec<Process>> = HashMap::new();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        let Some(uid) = read("cgroup").and_then(|text| pods_of(&text).into_iter().find(|uid| wanted(uid)))
        else {
            continue;
        };
        let Some(started) = read("stat").as_deref().and_then(started) else { continue };
        found.entry(uid).or_default().push(Process { started, id });
    }
    found.values_mut().for_each(|processes| processes.sort());
    Ok(found)
}

/// Field 22 of `/proc/PID/stat` (proc(5)). The second, the program's name, may hold anything.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::started;

    #[test]
    fn the_start_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(started(&format!("12 (a) b) c) {fields}")), Some(4711));
        assert_eq!(started("12 (a"), None);
        let own = std::fs::read_to_string("/proc/self/stat").expect("of this process");
        assert!(started(&own).is_some_and(|ticks| ticks > 0), "{own}");
    }
}
