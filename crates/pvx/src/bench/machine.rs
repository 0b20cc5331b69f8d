//! On what a measurement was made.

use std::{env, fs, time::SystemTime};

use serde::Serialize;

/// Enough to compare two reports, or to see that they cannot be compared.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
    pub(crate) hypervisor: bool,
    pub(crate) memory_mib: u64,
    pub(crate) date: String,
    pub(crate) command: String,
    pub(crate) version: &'static str,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let uname = rustix::system::uname();
        Self {
            cpu: raw_cpuid::CpuId::new()
                .get_processor_brand_string()
                .map_or_else(|| "unknown".to_owned(), |brand| brand.as_str().trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            hypervisor: raw_cpuid::CpuId::new().get_feature_info().is_some_and(|info| info.has_hypervisor()),
            memory_mib: mem_kib("MemTotal").unwrap_or(0) / 1024,
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command: command(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// A line of /proc/meminfo, in KiB.
pub(super) fn mem_kib(key: &str) -> Option<u64> {
    field_kib(&fs::read_to_string("/proc/meminfo").ok()?, key)
}

/// The number in the line `key:   number kB`.
pub(super) fn field_kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The command line, with the program's directory left out: it says nothing about the measurement.
fn command() -> String {
    let args = env::args().skip(1);
    ["pvx".to_owned()].into_iter().chain(args).collect::<Vec<_>>().join(" ")
}
