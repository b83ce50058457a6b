//! What the system says of the process, under the names that Prometheus's own clients use.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::page::Page;
use crate::snapshot::Moment;
use crate::telemetry::names;

/// What the system does not tell has no series.
pub(super) fn write(page: &mut Page, started: Moment) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    page.single(&names::PROCESS_CPU, cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |key: &str| -> Option<u64> {
        let value = status.lines().find_map(|line| line.strip_prefix(key))?;
        value.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    for (definition, key) in [(&names::PROCESS_RESIDENT, "VmRSS:"), (&names::PROCESS_VIRTUAL, "VmSize:")] {
        if let Some(kilobytes) = kilobytes(key) {
            page.single(definition, kilobytes * 1024);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.single(&names::PROCESS_FDS, open.count());
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        page.single(&names::PROCESS_MAX_FDS, limit);
    }
    page.single(&names::PROCESS_START, started.0 as f64 / 1e6);
}
