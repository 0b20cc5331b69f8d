//! What became of a call, for people and as JSON.

use std::fmt::Write;

use appkernel::calls::{self, FieldValue, Kind, Record};
use process_vm_exec::{Errno, Sysno};
use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::perform::{Buffer, Outcome};

/// The JSON of `pvx call --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    call: &'static str,
    /// As registers have them, in hexadecimal.
    args: Vec<String>,
    /// What the call returned; null if it failed.
    result: Option<i64>,
    /// Why it failed; null if it did not.
    error: Option<Failure>,
    buffers: Vec<BufferReport>,
}

/// An errno.
#[derive(Debug, Serialize)]
struct Failure {
    errno: i32,
    /// As errno(3) has it, such as `ENOENT`.
    name: String,
    message: String,
}

/// What a call left in memory. At least `hex` says it.
#[derive(Debug, Serialize)]
struct BufferReport {
    /// Of which argument, from 1 on.
    arg: usize,
    text: Option<String>,
    /// Fields of a record, by the names of the kernel's headers.
    fields: Option<Map<String, Json>>,
    hex: String,
}

impl Report {
    pub(crate) fn new(call: Sysno, outcome: &Outcome) -> Self {
        Self {
            call: call.name(),
            args: outcome.args.iter().map(|arg| format!("{arg:#x}")).collect(),
            result: outcome.result.ok().map(u64::cast_signed),
            error: outcome.result.err().map(Failure::of),
            buffers: outcome.buffers.iter().map(BufferReport::new).collect(),
        }
    }
}

impl Failure {
    fn of(errno: Errno) -> Self {
        // `-1 NAME (MESSAGE)`
        let shown = calls::error(errno);
        let shown = shown.trim_start_matches("-1 ").trim_end_matches(')');
        let (name, message) = shown.split_once(" (").unwrap_or((shown, ""));
        Self { errno: errno.raw_os_error(), name: name.to_owned(), message: message.to_owned() }
    }
}

impl BufferReport {
    fn new(buffer: &Buffer) -> Self {
        let fields = match buffer.kind {
            Kind::Out(record) => Some(
                fields(record, &buffer.bytes).map(|(name, value)| (name.to_owned(), json(value))).collect(),
            ),
            _ => None,
        };
        Self {
            arg: buffer.index + 1,
            text: if fields.is_none() { text(buffer).map(str::to_owned) } else { None },
            fields,
            hex: buffer.bytes.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            }),
        }
    }
}

fn json(value: FieldValue) -> Json {
    match value {
        FieldValue::Int(number) => number.into(),
        FieldValue::Uint(number) => number.into(),
        FieldValue::Text(text) => text.into(),
    }
}

/// `= 3`, or `= -1 ENOENT (No such file or directory)`, and what the call left in memory.
pub(crate) fn describe(call: Sysno, outcome: &Outcome) -> String {
    let mut out = match outcome.result {
        Ok(value) if calls::returns_address(call) => format!("= {value:#x}\n"),
        Ok(value) => format!("= {}\n", value.cast_signed()),
        Err(errno) => format!("= {}\n", calls::error(errno)),
    };
    for buffer in &outcome.buffers {
        // One buffer speaks for itself.
        if outcome.buffers.len() > 1 {
            let _ = writeln!(out, "argument {}:", buffer.index + 1);
        }
        describe_buffer(buffer, &mut out);
    }
    out
}

fn describe_buffer(buffer: &Buffer, out: &mut String) {
    if let Kind::Out(record) = buffer.kind {
        let fields: Vec<_> = fields(record, &buffer.bytes).collect();
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in fields {
            let _ = writeln!(out, "  {name:<width$}  {value}");
        }
    } else if let (Kind::OutInts, Some((pair, []))) = (buffer.kind, buffer.bytes.split_first_chunk::<8>()) {
        let [first, second] =
            [0, 4].map(|at| i32::from_le_bytes([pair[at], pair[at + 1], pair[at + 2], pair[at + 3]]));
        let _ = writeln!(out, "[{first}, {second}]");
    } else if let Some(text) = text(buffer) {
        out.push_str(text);
        if !text.ends_with('\n') {
            out.push('\n');
        }
    } else {
        dump(&buffer.bytes, out);
    }
}

fn fields(record: &'static Record, bytes: &[u8]) -> impl Iterator<Item = (&'static str, FieldValue)> {
    // A socket's address may be shorter than the largest one: what is missing is 0.
    let mut whole = vec![0; record.len.max(bytes.len())];
    whole[..bytes.len()].copy_from_slice(bytes);
    record.fields.iter().filter_map(move |field| Some((field.name, field.value(&whole)?)))
}

/// Data as text, if that is what it is. A terminal must not obey what a process has in its memory, so control
/// characters make it something else.
fn text(buffer: &Buffer) -> Option<&str> {
    if buffer.kind != Kind::Data {
        return None;
    }
    let end = buffer.bytes.iter().rposition(|&byte| byte != 0)? + 1;
    let text = str::from_utf8(&buffer.bytes[..end]).ok()?;
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')).then_some(text)
}

/// Sixteen bytes a line: where, in hexadecimal, and as characters.
fn dump(bytes: &[u8], out: &mut String) {
    for (index, line) in bytes.chunks(16).enumerate() {
        let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let characters: String = line
            .iter()
            .map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '.' })
            .collect();
        let _ = writeln!(out, "{:08x}  {:<47}  |{characters}|", index * 16, hex.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(call: Sysno, index: usize, bytes: &[u8]) -> Outcome {
        let kind = calls::kinds(call).expect("it is in the table")[index];
        let buffers = vec![Buffer { index, kind, bytes: bytes.to_vec() }];
        Outcome { args: vec![1, 2], result: Ok(bytes.len() as u64), buffers }
    }

    #[test]
    fn results_are_shown_as_strace_does() {
        let mut outcome = Outcome { args: Vec::new(), result: Ok(3), buffers: Vec::new() };
        assert_eq!(describe(Sysno::dup, &outcome), "= 3\n");
        outcome.result = Ok(0x7000_0000);
        assert_eq!(describe(Sysno::mmap, &outcome), "= 0x70000000\n");
        outcome.result = Err(Errno::NOENT);
        assert_eq!(describe(Sysno::open, &outcome), "= -1 ENOENT (No such file or directory)\n");
    }

    #[test]
    fn text_is_shown_as_text_and_records_by_their_fields() {
        assert_eq!(describe(Sysno::getcwd, &outcome(Sysno::getcwd, 0, b"/etc\0")), "= 5\n/etc\n");
        let limits = [5u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
        let shown = describe(Sysno::getrlimit, &outcome(Sysno::getrlimit, 1, &limits));
        assert_eq!(shown, "= 16\n  rlim_cur  5\n  rlim_max  unlimited\n");
        let pair = [3u32.to_le_bytes(), 4u32.to_le_bytes()].concat();
        assert_eq!(describe(Sysno::pipe, &outcome(Sysno::pipe, 0, &pair)), "= 8\n[3, 4]\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_dumped() {
        let shown = describe(Sysno::read, &outcome(Sysno::read, 1, b"\x1b[2J\xff"));
        assert_eq!(shown, "= 5\n00000000  1b 5b 32 4a ff                                   |.[2J.|\n");
    }

    #[test]
    fn json_has_the_fields_and_the_bytes() {
        let limits = [5u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
        let report = Report::new(Sysno::getrlimit, &outcome(Sysno::getrlimit, 1, &limits));
        let json = serde_json::to_value(report).unwrap();
        assert_eq!(json["buffers"][0]["fields"]["rlim_cur"], 5);
        assert_eq!(json["buffers"][0]["hex"], "0500000000000000ffffffffffffffff");
        assert_eq!(json["error"], Json::Null);
        let failed = Outcome { args: Vec::new(), result: Err(Errno::BADF), buffers: Vec::new() };
        let json = serde_json::to_value(Report::new(Sysno::close, &failed)).unwrap();
        assert_eq!(json["result"], Json::Null);
        let error = serde_json::json!({ "errno": 9, "name": "EBADF", "message": "Bad file descriptor" });
        assert_eq!(json["error"], error);
    }
}
