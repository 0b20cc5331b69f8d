//! Arguments and results in words.

use std::{ffi::CString, fmt::Write};

use process_vm_exec::{AddressSpace, Syscall};
use syscalls::Sysno;

use crate::{
    abi::{Answer, i64_at, int, long, size, uint},
    calls::{self, Kind, Names, kinds},
    files::AT_FDCWD,
    guest::GuestMemory,
    process::ARGUMENTS_MAX,
};

/// The most bytes of a string that are shown.
const SHOWN: u64 = 32;
/// The most strings of an argument list that are shown.
const STRINGS: usize = 16;
/// The flags by which open(2) makes a file, and looks at permissions. `O_TMPFILE` has the bit of `O_DIRECTORY`, too.
const MAKES_A_FILE: u32 = (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY).cast_unsigned();

/// On which side of the call its arguments are described.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    Before,
    After(Answer),
}

/// Appends the arguments of `call`. Those of a call that leaves something in guest memory are described after it,
/// those of others before it: each call's once.
pub(super) fn describe(space: &AddressSpace, call: &Syscall, when: When, line: &mut String) {
    let kinds = Sysno::new(size(call.nr)).and_then(kinds).unwrap_or(&[Kind::Hex; 6]);
    let leaves_something = kinds.contains(&Kind::Data) || kinds.contains(&Kind::OutInts);
    let answer = match when {
        When::Before if leaves_something => return,
        When::After(_) if !leaves_something => return,
        When::Before => None,
        When::After(answer) => answer.ok(),
    };
    for (index, kind) in kinds.iter().enumerate().filter(|&(index, _)| is_taken(kinds, call, index)) {
        if index > 0 {
            line.push_str(", ");
        }
        describe_one(space, call, index, *kind, answer, line);
    }
}

/// Does the kernel look at this argument?
fn is_taken(kinds: &[Kind], call: &Syscall, index: usize) -> bool {
    let makes_a_file = |flags: usize| uint(call.args[flags]) & MAKES_A_FILE != 0;
    match kinds[..=index] {
        [.., Kind::OpenFlags, Kind::Octal] => makes_a_file(index - 1),
        _ => true,
    }
}

fn describe_one(
    space: &AddressSpace,
    call: &Syscall,
    index: usize,
    kind: Kind,
    answer: Option<u64>,
    line: &mut String,
) {
    let value = call.args[index];
    let written = match kind {
        Kind::Int => write!(line, "{}", int(value)),
        Kind::Long => write!(line, "{}", long(value)),
        Kind::Size | Kind::SigsetSize => write!(line, "{value}"),
        Kind::Hex | Kind::Out(_) | Kind::Length if value == 0 => write!(line, "NULL"),
        Kind::Hex | Kind::Out(_) | Kind::Length => write!(line, "{value:#x}"),
        Kind::Offset => write!(line, "{value:#x}"),
        Kind::Octal => describe_permissions(value, line),
        Kind::Dir if int(value) == AT_FDCWD => write!(line, "AT_FDCWD"),
        Kind::Dir => write!(line, "{}", int(value)),
        Kind::Signal => write!(line, "{}", calls::signal_name(int(value))),
        Kind::Path => describe_path(space, value, line),
        Kind::Text => describe_bytes(space, value, call.args.get(index + 1).copied().unwrap_or(0), line),
        Kind::Data => match answer {
            Some(len) => describe_bytes(space, value, len, line),
            None => write!(line, "{value:#x}"),
        },
        Kind::OutInts => match space.fetch::<8>(value) {
            Ok(pair) if answer.is_some() => {
                write!(line, "[{}, {}]", int(u64::from_ne_bytes(pair)), int(u64::from_ne_bytes(pair) >> 32))
            }
            _ => write!(line, "{value:#x}"),
        },
        Kind::Strings => describe_strings(space, value, line),
        Kind::Environment => describe_environment(space, value, line),
        Kind::Time => match space.fetch::<16>(value) {
            Ok(time) if value != 0 => {
                write!(line, "{{tv_sec={}, tv_nsec={}}}", i64_at(&time, 0), i64_at(&time, 8))
            }
            _ if value == 0 => write!(line, "NULL"),
            _ => write!(line, "{value:#x}"),
        },
        Kind::Bits(names) => calls::describe_bits(u64::from(uint(value)), names, line),
        Kind::One(names) => describe_choice(u64::from(uint(value)), names, line),
        Kind::OpenFlags => calls::describe_open(uint(value), line),
    };
    debug_assert!(written.is_ok(), "writing to a String does not fail");
}

/// Appends what a successful call returned.
pub(super) fn describe_result(call: &Syscall, value: u64, line: &mut String) {
    let written = match Sysno::new(size(call.nr)) {
        Some(Sysno::umask) => describe_permissions(value, line),
        Some(call) if calls::returns_address(call) => write!(line, "{value:#x}"),
        _ => write!(line, "{}", long(value)),
    };
    debug_assert!(written.is_ok(), "writing to a String does not fail");
}

fn describe_choice(value: u64, names: Names, line: &mut String) -> std::fmt::Result {
    match names.iter().find(|&&(candidate, _)| candidate == value) {
        Some((_, name)) => line.write_str(name),
        None => write!(line, "{value:#x}"),
    }
}

fn describe_permissions(value: u64, line: &mut String) -> std::fmt::Result {
    write!(line, "0{:02o}", uint(value))
}

fn describe_path(space: &AddressSpace, addr: u64, line: &mut String) -> std::fmt::Result {
    match space.fetch_path(addr) {
        Ok(path) => write!(line, "\"{}\"", path.to_bytes().escape_ascii()),
        Err(_) if addr == 0 => line.write_str("NULL"),
        Err(_) => write!(line, "{addr:#x}"),
    }
}

fn describe_bytes(space: &AddressSpace, addr: u64, len: u64, line: &mut String) -> std::fmt::Result {
    let mut bytes = [0; 32];
    let shown = &mut bytes[..size(len.min(SHOWN))];
    match space.fetch_into(addr, shown) {
        Ok(()) => {
            let more = if len > SHOWN { "..." } else { "" };
            write!(line, "\"{}\"{more}", shown.escape_ascii())
        }
        Err(_) => write!(line, "{addr:#x}"),
    }
}

fn describe_strings(space: &AddressSpace, addr: u64, line: &mut String) -> std::fmt::Result {
    let Ok(strings) = space.fetch_strings(addr, &mut (1 << 16)) else { return write!(line, "{addr:#x}") };
    if strings.len() > STRINGS {
        return write!(line, "{addr:#x} /* {} strings */", strings.len());
    }
    line.write_str(&list(&strings))
}

pub(super) fn list(strings: &[CString]) -> String {
    let quoted: Vec<_> =
        strings.iter().map(|string| format!("\"{}\"", string.to_bytes().escape_ascii())).collect();
    format!("[{}]", quoted.join(", "))
}

fn describe_environment(space: &AddressSpace, addr: u64, line: &mut String) -> std::fmt::Result {
    let mut budget = ARGUMENTS_MAX;
    match space.fetch_strings(addr, &mut budget) {
        Ok(_) if addr == 0 => line.write_str("NULL"),
        Ok(strings) => line.write_str(&variables(addr, strings.len())),
        Err(_) => write!(line, "{addr:#x}"),
    }
}

/// An environment: where it is, and how many variables it has.
pub(super) fn variables(addr: u64, count: usize) -> String {
    let noun = if count == 1 { "var" } else { "vars" };
    format!("{addr:#x} /* {count} {noun} */")
}
