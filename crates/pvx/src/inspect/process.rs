//! What /proc tells of a process as a whole: who it is, what it may do, how it is set up.

use std::{fs, io::Read, os::unix::fs::MetadataExt, path::Path};

use procfs::{
    ProcError,
    process::{LimitValue, Process, Stat, Status},
};
use serde::Serialize;

use super::threads::state;

/// Who it is.
#[derive(Debug, Serialize)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) command_line: Vec<String>,
    /// Null where it may not be read, or there is none.
    pub(crate) executable: Option<String>,
    pub(crate) working_directory: Option<String>,
    pub(crate) root: Option<String>,
    pub(crate) umask: Option<String>,
    pub(crate) state: String,
    pub(crate) parent: i32,
    pub(crate) process_group: i32,
    pub(crate) session: i32,
    /// 0 if nobody traces it.
    pub(crate) tracer: i32,
    /// Its numbers in its namespace of processes and in those around it, the outermost first.
    pub(crate) numbers: Vec<i32>,
}

/// Whose rights it has: real, effective, saved, and for files.
#[derive(Debug, Serialize)]
pub(crate) struct Credentials {
    pub(crate) users: [u32; 4],
    pub(crate) groups: [u32; 4],
    pub(crate) supplementary_groups: Vec<u32>,
    /// Sets of capabilities, in hexadecimal as /proc/PID/status has them.
    pub(crate) capabilities: Capabilities,
    pub(crate) login_user: Option<u32>,
}

/// Sets of capabilities (capabilities(7)).
#[derive(Debug, Serialize)]
pub(crate) struct Capabilities {
    pub(crate) inheritable: String,
    pub(crate) permitted: String,
    pub(crate) effective: String,
    pub(crate) bounding: Option<String>,
    pub(crate) ambient: Option<String>,
}

/// A namespace that it is in.
#[derive(Debug, Serialize)]
pub(crate) struct Namespace {
    pub(crate) kind: String,
    pub(crate) inode: u64,
}

/// A limit of its resources; null where there is none.
#[derive(Debug, Serialize)]
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

/// How it is set up: what /proc says of the main thread, and what prctl(2) tells a thread of the process about that.
/// Null is what neither says here.
#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    /// `off`, `strict` or `filter`, and how many filters.
    pub(crate) seccomp: Option<&'static str>,
    pub(crate) seccomp_filters: Option<u64>,
    pub(crate) no_new_privileges: Option<bool>,
    pub(crate) speculative_store_bypass: Option<String>,
    pub(crate) speculative_indirect_branches: Option<String>,
    pub(crate) huge_pages: Option<bool>,
    pub(crate) dumping_core: Option<bool>,
    /// What the process says, or else the owner of /proc/PID, which does not tell of a process of root.
    pub(crate) dumpable: Option<bool>,
    pub(crate) coredump_filter: Option<String>,
    pub(crate) timer_slack_ns: Option<u64>,
    pub(crate) personality: Option<String>,
    pub(crate) oom_score: Option<i64>,
    pub(crate) oom_score_adj: Option<i64>,
    pub(crate) nice: i64,
    pub(crate) policy: Option<u32>,
    pub(crate) real_time_priority: Option<u32>,
    pub(crate) cpus: Option<String>,
    pub(crate) control_group: Option<String>,
    /// What follows only the process itself can say.
    pub(crate) child_subreaper: Option<bool>,
    pub(crate) huge_pages_disabled: Option<bool>,
    pub(crate) memory_deny_write_execute: Option<bool>,
    pub(crate) memory_merge: Option<bool>,
}

impl Identity {
    pub(crate) fn of(process: &Process, stat: &Stat, status: &Status) -> Self {
        let path = |path: Result<std::path::PathBuf, ProcError>| Some(path.ok()?.display().to_string());
        Self {
            name: stat.comm.clone(),
            command_line: command_line(process),
            executable: path(process.exe()),
            working_directory: path(process.cwd()),
            root: path(process.root()),
            umask: status.umask.map(|umask| format!("{umask:04o}")),
            state: state(stat.state),
            parent: stat.ppid,
            process_group: stat.pgrp,
            session: stat.session,
            tracer: status.tracerpid,
            numbers: status.nspid.clone().unwrap_or_default(),
        }
    }
}

/// Words need not be UTF-8, and may be empty.
fn command_line(process: &Process) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = process.open_relative("cmdline").map(|mut file| file.read_to_end(&mut bytes));
    if !matches!(read, Ok(Ok(_))) || bytes.is_empty() {
        return Vec::new();
    }
    let line = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    line.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

impl Credentials {
    pub(crate) fn of(process: &Process, status: &Status) -> Self {
        let hex = |set: u64| format!("{set:016x}");
        // All ones stand for nobody (include/linux/uidgid.h, `INVALID_UID`).
        let login_user = process.loginuid().ok().filter(|&user| user != u32::MAX);
        Self {
            users: [status.ruid, status.euid, status.suid, status.fuid],
            groups: [status.rgid, status.egid, status.sgid, status.fgid],
            supplementary_groups: status.groups.clone(),
            capabilities: Capabilities {
                inheritable: hex(status.capinh),
                permitted: hex(status.capprm),
                effective: hex(status.capeff),
                bounding: status.capbnd.map(hex),
                ambient: status.capamb.map(hex),
            },
            login_user,
        }
    }
}

/// By name.
pub(crate) fn namespaces(process: &Process) -> Result<Vec<Namespace>, ProcError> {
    let mut namespaces: Vec<_> = process
        .namespaces()?
        .0
        .into_values()
        .map(|namespace| Namespace {
            kind: namespace.ns_type.to_string_lossy().into_owned(),
            inode: namespace.identifier,
        })
        .collect();
    namespaces.sort_by(|one, other| one.kind.cmp(&other.kind));
    Ok(namespaces)
}

/// In the order of /proc/PID/limits; named as getrlimit(2) does.
pub(crate) fn limits(process: &Process) -> Result<Vec<Limit>, ProcError> {
    let limits = process.limits()?;
    let value = |value| match value {
        LimitValue::Unlimited => None,
        LimitValue::Value(value) => Some(value),
    };
    let limit = |name, limit: procfs::process::Limit| Limit {
        name,
        soft: value(limit.soft_limit),
        hard: value(limit.hard_limit),
    };
    Ok(vec![
        limit("RLIMIT_CPU", limits.max_cpu_time),
        limit("RLIMIT_FSIZE", limits.max_file_size),
        limit("RLIMIT_DATA", limits.max_data_size),
        limit("RLIMIT_STACK", limits.max_stack_size),
        limit("RLIMIT_CORE", limits.max_core_file_size),
        limit("RLIMIT_RSS", limits.max_resident_set),
        limit("RLIMIT_NPROC", limits.max_processes),
        limit("RLIMIT_NOFILE", limits.max_open_files),
        limit("RLIMIT_MEMLOCK", limits.max_locked_memory),
        limit("RLIMIT_AS", limits.max_address_space),
        limit("RLIMIT_LOCKS", limits.max_file_locks),
        limit("RLIMIT_SIGPENDING", limits.max_pending_signals),
        limit("RLIMIT_MSGQUEUE", limits.max_msgqueue_size),
        limit("RLIMIT_NICE", limits.max_nice_priority),
        limit("RLIMIT_RTPRIO", limits.max_realtime_priority),
        limit("RLIMIT_RTTIME", limits.max_realtime_timeout),
    ])
}

impl Settings {
    pub(crate) fn of(process: &Process, stat: &Stat, status: &Status) -> Self {
        let file = |name: &str| read(process, name);
        let lines = file("status").unwrap_or_default();
        // `procfs` does not have these two.
        let line = |key: &str| {
            let value = lines.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            Some(value.trim().to_owned())
        };
        Self {
            seccomp: status.seccomp.map(|mode| match mode {
                0 => "off",
                1 => "strict",
                _ => "filter",
            }),
            seccomp_filters: line("Seccomp_filters").and_then(|count| count.parse().ok()),
            no_new_privileges: status.nonewprivs.map(|value| value != 0),
            speculative_store_bypass: status.speculation_store_bypass.clone(),
            speculative_indirect_branches: line("SpeculationIndirectBranch"),
            huge_pages: status.thp_enabled,
            dumping_core: status.core_dumping,
            dumpable: dumpable(process.pid, status.euid),
            coredump_filter: file("coredump_filter").map(|filter| format!("0x{filter}")),
            timer_slack_ns: file("timerslack_ns").and_then(|slack| slack.parse().ok()),
            personality: file("personality").map(|personality| format!("0x{personality}")),
            oom_score: file("oom_score").and_then(|score| score.parse().ok()),
            oom_score_adj: file("oom_score_adj").and_then(|score| score.parse().ok()),
            nice: stat.nice,
            policy: stat.policy,
            real_time_priority: stat.rt_priority,
            cpus: line("Cpus_allowed_list"),
            // The one of version 2; those of version 1 are many (cgroups(7)).
            control_group: file("cgroup").and_then(|groups| {
                groups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
            }),
            child_subreaper: None,
            huge_pages_disabled: None,
            memory_deny_write_execute: None,
            memory_merge: None,
        }
    }
}

/// /proc/PID belongs to root instead of the effective user if the process is not dumpable (proc(5)).
fn dumpable(pid: i32, effective_user: u32) -> Option<bool> {
    let owner = fs::metadata(Path::new("/proc").join(pid.to_string())).ok()?.uid();
    (effective_user != 0).then_some(owner == effective_user)
}

fn read(process: &Process, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    process.open_relative(name).ok()?.read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described_as_it_is() {
        let process = Process::myself().unwrap();
        let (stat, status) = (process.stat().unwrap(), process.status().unwrap());
        let identity = Identity::of(&process, &stat, &status);
        assert_eq!(identity.command_line, std::env::args().collect::<Vec<_>>());
        assert_eq!(identity.working_directory, Some(std::env::current_dir().unwrap().display().to_string()));
        let credentials = Credentials::of(&process, &status);
        assert_eq!(credentials.users[1], rustix::process::geteuid().as_raw());
        let files =
            limits(&process).unwrap().into_iter().find(|limit| limit.name == "RLIMIT_NOFILE").unwrap();
        assert_eq!(files.soft, rustix::process::getrlimit(rustix::process::Resource::Nofile).current);
        assert!(namespaces(&process).unwrap().iter().any(|namespace| namespace.kind == "pid"));
        let settings = Settings::of(&process, &stat, &status);
        assert_eq!(settings.nice, i64::from(rustix::process::getpriority_process(None).unwrap()));
    }
}
