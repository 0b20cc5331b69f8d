//! What an executor may leave behind in a process that was attached to, and whether it did.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use process_vm_exec::DEFAULT_REGION;

/// How long cleaning up may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// There is no trace of us in the process: no mapping, task, child, zombie, descriptor or tracer, and it runs.
#[track_caller]
pub(crate) fn assert_no_trace(pid: i32) {
    assert_no_trace_but(pid, |_| false);
}

/// As [`assert_no_trace`], but for what is expected. What passes by is no trace: a target has children of its own.
#[track_caller]
pub(crate) fn assert_no_trace_but(pid: i32, is_expected: impl Fn(&Trace) -> bool) {
    let look = || traces(pid).into_iter().filter(|trace| !is_expected(trace)).collect::<Vec<_>>();
    let end = Instant::now() + PATIENCE;
    // Twice, as a trace may show late, while something is cleaned up.
    for _ in 0..2 {
        let mut stays = look();
        while !stays.is_empty() {
            assert!(Instant::now() < end, "still there in process {pid}: {stays:?}");
            thread::sleep(Duration::from_millis(2));
            let now = look();
            stays.retain(|trace| now.iter().any(|other| other.subject() == trace.subject()));
        }
    }
}

/// Something that a process has, and should not have of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// The process itself is not there.
    Gone,
    /// A line of its maps, in the library's region.
    Mapping(String),
    /// A task of it that is stopped, with its state.
    Stopped(i32, char),
    /// A task of it with its tracer.
    Traced(i32, i32),
    /// A child, with its state.
    Child(i32, char),
    /// A task of another process that has the same memory.
    SameMemory(i32),
    /// A descriptor of a kind that targets have none of.
    Descriptor(String),
}

impl Trace {
    /// What it is about. It is the same one as long as this is the same, whatever becomes of it.
    fn subject(&self) -> (u32, i32) {
        match self {
            Self::Gone => (0, 0),
            Self::Mapping(_) => (1, 0),
            Self::Stopped(tid, _) => (2, *tid),
            Self::Traced(tid, _) => (3, *tid),
            Self::Child(pid, _) | Self::SameMemory(pid) => (4, *pid),
            Self::Descriptor(text) => (5, text.split(' ').next().and_then(|fd| fd.parse().ok()).unwrap_or(0)),
        }
    }
}

/// A file of /proc as text. The names of programs and files in it may be any bytes.
fn text(path: &str) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
}

/// What the process has mapped; nothing if it is gone. A main thread that has ended has no memory, but others may.
fn maps(pid: i32) -> String {
    let of = |tid| text(&format!("/proc/{tid}/maps")).filter(|maps| !maps.is_empty());
    of(pid).or_else(|| numbers(&format!("/proc/{pid}/task")).into_iter().find_map(of)).unwrap_or_default()
}

/// What there is in this moment.
pub(crate) fn traces(pid: i32) -> Vec<Trace> {
    let maps = maps(pid);
    if maps.is_empty() {
        return vec![Trace::Gone];
    }
    let mut found: Vec<_> =
        maps.lines().filter(|line| in_region(line)).map(|line| Trace::Mapping(line.into())).collect();
    for tid in numbers(&format!("/proc/{pid}/task")) {
        if let Some((state @ ('T' | 't' | 'Z' | 'X'), _)) =
            state_and_parent(&format!("/proc/{pid}/task/{tid}/stat"))
        {
            found.push(Trace::Stopped(tid, state));
        }
        if let Some(tracer @ 1..) = tracer(pid, tid) {
            found.push(Trace::Traced(tid, tracer));
        }
        // Absent without CONFIG_PROC_CHILDREN; parents are looked at below.
        let children = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
        found.extend(
            children.split_whitespace().filter_map(|child| Some(Trace::Child(child.parse().ok()?, '?'))),
        );
    }
    for other in numbers("/proc").into_iter().filter(|&other| other != pid) {
        if let Some((state, parent)) = state_and_parent(&format!("/proc/{other}/stat"))
            && parent == pid
        {
            found.retain(|trace| *trace != Trace::Child(other, '?'));
            found.push(Trace::Child(other, state));
        }
        let tasks = numbers(&format!("/proc/{other}/task")).into_iter();
        found.extend(tasks.filter(|&tid| has_same_memory(pid, tid)).map(Trace::SameMemory));
    }
    for fd in numbers(&format!("/proc/{pid}/fd")) {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        let link = link.to_string_lossy();
        if ["memfd:", "pidfd", "userfaultfd", "seccomp", "/proc/"].iter().any(|kind| link.contains(kind))
            // Which a target reads itself.
            && !["/task", "/status", "/schedstat"].iter().any(|own| link.ends_with(own))
        {
            found.push(Trace::Descriptor(format!("{fd} -> {link}")));
        }
    }
    found
}

/// Is a line of /proc/PID/maps about the library's region, wherever that is?
fn in_region(line: &str) -> bool {
    let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
    let Some((Ok(start), Ok(end))) =
        range.map(|(start, end)| (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)))
    else {
        return false;
    };
    start < DEFAULT_REGION.end && end > DEFAULT_REGION.start || line.contains("/memfd:pvx-executor")
}

/// Whether the process has the library's region.
pub(crate) fn has_region(pid: i32) -> bool {
    maps(pid).lines().any(in_region)
}

/// The entries of a directory that are numbers.
pub(crate) fn numbers(path: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// State and parent, by a stat file of /proc.
pub(crate) fn state_and_parent(path: &str) -> Option<(char, i32)> {
    let stat = text(path)?;
    // After the name in parentheses.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The process that traces a task; 0 if none does.
fn tracer(pid: i32, tid: i32) -> Option<i32> {
    let status = text(&format!("/proc/{pid}/task/{tid}/status"))?;
    status.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok())
}

/// Whether two tasks have one memory (kcmp(2)). Where that cannot be asked, they do not.
pub(crate) fn has_same_memory(one: i32, other: i32) -> bool {
    /// `KCMP_VM` of `linux/kcmp.h`.
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: kcmp(2) takes integers only.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0 as libc::c_ulong, 0 as libc::c_ulong) == 0 }
}

/// All descendants of a process.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let parents: Vec<_> = numbers("/proc")
        .into_iter()
        .filter_map(|child| Some((child, state_and_parent(&format!("/proc/{child}/stat"))?.1)))
        .collect();
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        at += 1;
    }
    found.split_off(1)
}
