//! The report for people: sections, columns, units. Short, unless all is wanted.

mod visited;

use std::fmt::Write;

use super::{
    descriptors::Descriptor,
    memory::{Mapping, Memory},
    process::{Credentials, Identity, Limit, Settings},
    report::Report,
    signals::Handler,
    threads::Thread,
};

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// The larger part of everything that can be long.
    Page,
    All,
}

/// The most lines of each kind on a page.
const MAPPINGS: usize = 20;
const LINES: usize = 16;

/// The whole report.
pub(crate) fn describe(report: &Report, length: Length) -> String {
    let mut out = String::new();
    if let Some(identity) = &report.identity {
        describe_identity(report.pid, identity, &mut out);
    }
    if let Some(credentials) = &report.credentials {
        describe_credentials(credentials, &mut out);
    }
    if let Some(memory) = &report.memory {
        describe_memory(memory, length, &mut out);
    }
    if let Some(threads) = &report.threads {
        describe_threads(threads, report.memory.as_ref(), length, &mut out);
    }
    describe_signals(report, &mut out);
    if let Some(descriptors) = &report.descriptors {
        describe_descriptors(descriptors, length, &mut out);
    }
    describe_lists(report, length, &mut out);
    if let Some(settings) = &report.settings {
        describe_settings(settings, &mut out);
    }
    if !report.missing.is_empty() {
        section("not known", &mut out);
    }
    pairs(report.missing.iter().map(|missing| (missing.what, Some(missing.why.clone()))), &mut out);
    out
}

fn describe_identity(pid: i32, identity: &Identity, out: &mut String) {
    let words: Vec<_> = identity.command_line.iter().map(|word| word.escape_debug().to_string()).collect();
    let title = if words.is_empty() { format!("[{}]", identity.name) } else { words.join(" ") };
    let _ = writeln!(out, "process {pid}: {title}");
    let relations =
        format!("{}, group {}, session {}", identity.parent, identity.process_group, identity.session);
    pairs(
        [
            ("state", Some(identity.state.clone())),
            ("executable", identity.executable.as_deref().map(printable)),
            ("directory", identity.working_directory.as_deref().map(printable)),
            ("root", identity.root.as_deref().map(printable).filter(|root| root != "/")),
            ("umask", identity.umask.clone()),
            ("parent", Some(relations)),
            ("traced by", (identity.tracer != 0).then(|| identity.tracer.to_string())),
            ("in namespaces", (identity.numbers.len() > 1).then(|| join(&identity.numbers))),
        ],
        out,
    );
}

fn describe_credentials(credentials: &Credentials, out: &mut String) {
    // Four equal ones are the usual case.
    let ids = |ids: [u32; 4]| match ids {
        [real, rest @ ..] if rest == [real; 3] => real.to_string(),
        [real, effective, saved, files] => {
            format!("{real} real, {effective} effective, {saved} saved, {files} for files")
        }
    };
    let capabilities = &credentials.capabilities;
    section("rights", out);
    pairs(
        [
            ("user", Some(ids(credentials.users))),
            ("group", Some(ids(credentials.groups))),
            ("groups", Some(join(&credentials.supplementary_groups)).filter(|groups| !groups.is_empty())),
            (
                "capabilities",
                Some(format!("{} effective, {} permitted", capabilities.effective, capabilities.permitted)),
            ),
            ("login user", credentials.login_user.map(|user| user.to_string())),
        ],
        out,
    );
}

fn describe_memory(memory: &Memory, length: Length, out: &mut String) {
    let total = &memory.total;
    section("memory", out);
    let _ = writeln!(
        out,
        "  {} mapped, {} resident, {} private and written, {} swapped, {} locked",
        units(total.size),
        units(total.resident),
        units(total.private_dirty),
        units(total.swapped),
        units(total.locked),
    );
    let mut shown: Vec<&Mapping> = memory.mappings.iter().collect();
    if length == Length::Page && shown.len() > MAPPINGS {
        shown.sort_by_key(|mapping| std::cmp::Reverse(mapping.usage.resident));
        shown.truncate(MAPPINGS);
        shown.sort_by_key(|mapping| mapping.start);
    }
    let rows = shown.iter().map(|mapping| {
        vec![
            format!("{:x}-{:x}", mapping.start, mapping.end),
            units(mapping.usage.size),
            units(mapping.usage.resident),
            units(mapping.usage.private_dirty),
            mapping.permissions.clone(),
            mapping.flags.join(" "),
            printable(&mapping.name),
        ]
    });
    table(&["address", "size", "resident", "written", "mode", "flags", "name"], rows, out);
    more(memory.mappings.len() - shown.len(), "smaller mappings", out);
}

fn describe_threads(threads: &[Thread], memory: Option<&Memory>, length: Length, out: &mut String) {
    section("threads", out);
    let shown = if length == Length::All { threads.len() } else { threads.len().min(LINES) };
    let rows = threads[..shown].iter().map(|thread| {
        let at = thread.registers.as_ref().map(|registers| {
            let place = memory.and_then(|memory| memory.place(registers.rip.0));
            place.map_or_else(|| format!("{:#x}", registers.rip.0), |place| printable(&place))
        });
        vec![
            thread.tid.to_string(),
            printable(&thread.name),
            if thread.is_kernels { format!("{}, of the kernel", thread.state) } else { thread.state.clone() },
            thread.call.as_ref().map_or_else(|| "-".to_owned(), |call| call.name.clone()),
            at.unwrap_or_else(|| "-".to_owned()),
            if thread.blocked.is_empty() { "-".to_owned() } else { thread.blocked.join(" ") },
            if thread.pending.is_empty() { "-".to_owned() } else { thread.pending.join(" ") },
        ]
    });
    table(&["thread", "name", "state", "in call", "at", "blocks", "pending"], rows, out);
    more(threads.len() - shown, "threads", out);
    visited::describe_threads(&threads[..shown], length, out);
}

fn describe_signals(report: &Report, out: &mut String) {
    let Some(signals) = &report.signals else { return };
    section("signals", out);
    let set = |names: &[String]| Some(names.join(" ")).filter(|names| !names.is_empty());
    pairs(
        [
            ("caught", set(&signals.caught).or(Some("none".to_owned()))),
            ("ignored", set(&signals.ignored)),
            ("pending", set(&signals.pending)),
            ("queued", Some(format!("{} of {}", signals.queued, signals.queue_limit))),
        ],
        out,
    );
    if let Some(handlers) = report.handlers.as_deref().filter(|handlers| !handlers.is_empty()) {
        let rows = handlers.iter().map(|Handler { signal, action, place, flags, mask }| {
            let action = place.as_deref().map_or_else(|| action.clone(), printable);
            vec![signal.clone(), action, flags.clone(), mask.clone()]
        });
        table(&["signal", "handler", "flags", "blocks meanwhile"], rows, out);
    }
}

fn describe_descriptors(descriptors: &[Descriptor], length: Length, out: &mut String) {
    section("descriptors", out);
    let shown = if length == Length::All { descriptors.len() } else { descriptors.len().min(LINES) };
    let rows = descriptors[..shown].iter().map(|descriptor| {
        vec![
            descriptor.fd.to_string(),
            descriptor.flags.clone().unwrap_or_else(|| "-".to_owned()),
            descriptor.position.map_or_else(|| "-".to_owned(), |position| position.to_string()),
            printable(&descriptor.target),
        ]
    });
    table(&["fd", "flags", "position", "target"], rows, out);
    more(descriptors.len() - shown, "descriptors", out);
}

/// Timers, limits and namespaces.
fn describe_lists(report: &Report, length: Length, out: &mut String) {
    if let Some(timers) = report.timers.as_deref().filter(|timers| !timers.is_empty()) {
        section("timers", out);
        let rows = timers.iter().map(|timer| {
            vec![
                timer.id.to_string(),
                timer.clock.to_string(),
                timer.notify.clone(),
                timer.signal.to_string(),
            ]
        });
        table(&["timer", "clock", "notifies", "signal"], rows, out);
    }
    visited::describe_timers(report.interval_timers.as_deref().unwrap_or_default(), out);
    let limit = |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
    if let Some(limits) = &report.limits {
        let is_one = |line: &&Limit| length == Length::All || line.soft.is_some() || line.hard.is_some();
        section("limits", out);
        let rows = limits
            .iter()
            .filter(is_one)
            .map(|line| vec![line.name.to_owned(), limit(line.soft), limit(line.hard)]);
        table(&["limit", "soft", "hard"], rows, out);
    }
    if let Some(namespaces) = &report.namespaces {
        section("namespaces", out);
        let names: Vec<_> =
            namespaces.iter().map(|namespace| format!("{}:{}", namespace.kind, namespace.inode)).collect();
        for line in names.chunks(5) {
            let _ = writeln!(out, "  {}", line.join("  "));
        }
    }
}

fn describe_settings(settings: &Settings, out: &mut String) {
    let yes = |value: Option<bool>| value.map(|value| if value { "yes" } else { "no" }.to_owned());
    let seccomp = settings.seccomp.map(|mode| match settings.seccomp_filters {
        Some(filters @ 1..) => format!("{mode}, {filters} filters"),
        _ => mode.to_owned(),
    });
    let scheduling = format!(
        "nice {}, policy {}, real-time priority {}",
        settings.nice,
        settings.policy.unwrap_or(0),
        settings.real_time_priority.unwrap_or(0)
    );
    section("settings, of the main thread", out);
    pairs(
        [
            ("seccomp", seccomp),
            ("no new privileges", yes(settings.no_new_privileges)),
            ("store bypass", settings.speculative_store_bypass.clone()),
            ("indirect branches", settings.speculative_indirect_branches.clone()),
            ("huge pages", yes(settings.huge_pages)),
            ("huge pages disabled", yes(settings.huge_pages_disabled)),
            ("merging pages", yes(settings.memory_merge)),
            ("never write and execute", yes(settings.memory_deny_write_execute)),
            ("child subreaper", yes(settings.child_subreaper)),
            ("dumpable", yes(settings.dumpable)),
            ("dumping core", yes(settings.dumping_core)),
            ("core contents", settings.coredump_filter.clone()),
            ("personality", settings.personality.clone()),
            ("timer slack", settings.timer_slack_ns.map(|slack| format!("{slack} ns"))),
            ("scheduling", Some(scheduling)),
            ("processors", settings.cpus.clone()),
            (
                "out of memory",
                settings.oom_score.map(|score| match settings.oom_score_adj {
                    Some(adjusted @ (i64::MIN..=-1 | 1..)) => {
                        format!("score {score}, adjusted by {adjusted}")
                    }
                    _ => format!("score {score}"),
                }),
            ),
            ("control group", settings.control_group.as_deref().map(printable)),
        ],
        out,
    );
}

fn section(name: &str, out: &mut String) {
    let _ = writeln!(out, "\n{name}");
}

/// Names and what belongs to them, where there is something.
fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, Option<String>)>, out: &mut String) {
    let pairs: Vec<_> = pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in pairs {
        let _ = writeln!(out, "  {name:<width$}  {value}");
    }
}

/// Columns as wide as what is in them, numbers to the right.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>, out: &mut String) {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    if rows.len() == 1 {
        return;
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    for row in &rows {
        let mut line = String::from(" ");
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // The header decides nothing: quantities begin with a digit.
            let numeric = rows[1..].iter().all(|row| row[column].starts_with(|c: char| c.is_ascii_digit()));
            let _ = if numeric { write!(line, " {cell:>width$} ") } else { write!(line, " {cell:<width$} ") };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn more(count: usize, what: &str, out: &mut String) {
    if count > 0 {
        let _ = writeln!(out, "  and {count} more {what}: --all");
    }
}

/// What a process has chosen must not give orders to a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn join(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Bytes in the largest unit that leaves a digit before the point.
fn units(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut tenths, mut unit) = (bytes, 0, 0);
    while whole >= 1024 && unit < UNITS.len() - 1 {
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    if tenths == 0 || whole >= 100 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{tenths} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(units(0), "0 B");
        assert_eq!(units(4096), "4 KiB");
        assert_eq!(units((1 << 20) + (1 << 19)), "1.5 MiB");
        assert_eq!(units(u64::MAX), "16777215 TiB");
    }

    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let mut out = String::new();
        table(
            &["n", "name"],
            [["1", "a"], ["22", "bb"]].map(|row| row.map(str::to_owned).into()).into_iter(),
            &mut out,
        );
        assert_eq!(out, "   n  name\n   1  a\n  22  bb\n");
    }

    #[test]
    fn a_terminal_gets_no_orders() {
        assert_eq!(printable("a\x1b[2Jb"), "a?[2Jb");
    }
}
