//! What the kernel says about this process.

use std::fmt;
use std::fs;
use std::sync::OnceLock;

use prometheus_client::encoding::DescriptorEncoder;
use rustix::process::{Resource, getrlimit};

use super::scrape::{counters, gauges};
use super::spec;

/// The part of `/proc/self/stat` after the command's name; fields are counted from 3 (proc(5)).
fn stat() -> Option<Vec<u64>> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// Field `number` of proc(5).
fn field(stat: &[u64], number: usize) -> u64 {
    stat.get(number - 3).copied().unwrap_or(0)
}

#[allow(clippy::cast_precision_loss)]
fn in_seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Boot time, in seconds since the epoch.
fn boot_time() -> u64 {
    static BOOT: OnceLock<u64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("btime "));
        line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
    })
}

/// Open descriptors of this process.
pub(crate) fn open_descriptors() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| {
        // The one that reads the directory is not counted.
        u64::try_from(entries.count()).unwrap_or(0).saturating_sub(1)
    })
}

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    gauges(encoder, &spec::OPEN_FDS, [([], open_descriptors())])?;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    gauges(encoder, &spec::MAX_FDS, [([], limit)])?;
    let stat = stat().unwrap_or_default();
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    gauges(encoder, &spec::RESIDENT_MEMORY, [([], field(&stat, 24) * page)])?;
    counters(encoder, &spec::CPU_SECONDS, [([], in_seconds(field(&stat, 14) + field(&stat, 15)))])?;
    #[allow(clippy::cast_precision_loss)]
    let started = boot_time() as f64 + in_seconds(field(&stat, 22));
    gauges(encoder, &spec::START_TIME, [([], started)])?;
    gauges(encoder, &spec::BUILD_INFO, [([env!("CARGO_PKG_VERSION")], 1u64)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_plausible_numbers() {
        let stat = stat().unwrap();
        assert!(field(&stat, 24) > 100, "resident pages");
        assert!(open_descriptors() > 2);
        assert!(boot_time() > 1_600_000_000);
    }
}
