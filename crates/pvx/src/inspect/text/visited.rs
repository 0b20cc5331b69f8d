//! What threads were visited for, for people.

use std::fmt::Write;

use super::{
    super::{
        threads::{Others, Registers, Thread},
        visits::{AlternateStack, IntervalTimer, Rseq},
    },
    Length, section, table, units,
};

/// Their own things; all of their registers, if all is wanted.
pub(super) fn describe_threads(threads: &[Thread], length: Length, out: &mut String) {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let yes = |value: Option<bool>| or_dash(value.map(|value| if value { "yes" } else { "no" }.to_owned()));
    let rows = threads.iter().filter_map(|thread| {
        let own = thread.own_settings.as_ref()?;
        Some(vec![
            thread.tid.to_string(),
            or_dash(thread.alternate_stack.as_ref().map(alternate_stack)),
            or_dash(thread.rseq.as_ref().map(rseq)),
            or_dash(own.death_signal.clone()),
            or_dash(own.timer_slack_ns.map(|slack| format!("{slack} ns"))),
            or_dash(own.secure_bits.map(|bits| format!("{:#x}", bits.0))),
            yes(own.keep_capabilities),
            yes(own.time_stamp_counter),
        ])
    });
    let header = [
        "thread",
        "alternate stack",
        "rseq",
        "parent's death",
        "timer slack",
        "securebits",
        "keeps caps",
        "tsc",
    ];
    table(&header, rows, out);
    if length == Length::All {
        threads.iter().for_each(|thread| describe_registers(thread, out));
    }
}

fn alternate_stack(stack: &AlternateStack) -> String {
    if stack.flags.contains(&"SS_DISABLE") {
        return "none".to_owned();
    }
    let place = format!("{:#x}, {}", stack.address, units(stack.size));
    std::iter::once(place.as_str()).chain(stack.flags.iter().copied()).collect::<Vec<_>>().join(" ")
}

fn rseq(rseq: &Rseq) -> String {
    if rseq.registered { format!("{:#x}, {} B", rseq.address, rseq.size) } else { "none".to_owned() }
}

fn describe_registers(thread: &Thread, out: &mut String) {
    const COLUMNS: usize = 4;
    let Some(Registers { rip, rsp, others }) = &thread.registers else { return };
    let Others { rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, .. } = others;
    let Others { rflags, fs_base, gs_base, .. } = others;
    let all = [
        ("rip", &Some(*rip)),
        ("rsp", &Some(*rsp)),
        ("rbp", rbp),
        ("rflags", rflags),
        ("rax", rax),
        ("rbx", rbx),
        ("rcx", rcx),
        ("rdx", rdx),
        ("rsi", rsi),
        ("rdi", rdi),
        ("r8", r8),
        ("r9", r9),
        ("r10", r10),
        ("r11", r11),
        ("r12", r12),
        ("r13", r13),
        ("r14", r14),
        ("r15", r15),
        ("fs_base", fs_base),
        ("gs_base", gs_base),
    ];
    let known: Vec<_> = all.iter().filter_map(|(name, value)| Some((name, value.as_ref()?.0))).collect();
    let _ = writeln!(out, "  registers of thread {}", thread.tid);
    for line in known.chunks(COLUMNS) {
        let cells: Vec<_> = line.iter().map(|(name, value)| format!("{name:>7} {value:#018x}")).collect();
        let _ = writeln!(out, "  {}", cells.join("  "));
    }
}

/// Those that are set.
pub(super) fn describe_timers(timers: &[IntervalTimer], out: &mut String) {
    let mut set = timers.iter().filter(|timer| timer.value_us != 0).peekable();
    if set.peek().is_none() {
        return;
    }
    section("interval timers", out);
    let rows = set.map(|timer| {
        vec![
            timer.timer.to_owned(),
            format!("{} us", timer.value_us),
            if timer.interval_us == 0 { "never".to_owned() } else { format!("{} us", timer.interval_us) },
        ]
    });
    table(&["timer", "expires in", "then every"], rows, out);
}
