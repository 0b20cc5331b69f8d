//! The records that system calls leave in memory, field by field. Their layout is that of the kernel's headers, as
//! `linux-raw-sys` has it: libc's own can differ.

use std::{
    fmt,
    mem::{offset_of, size_of},
    net::{SocketAddrV4, SocketAddrV6},
};

use linux_raw_sys::{general as raw, system};

use super::names::{self, Names, describe_bits};

/// A record in memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// Its size in bytes.
    pub len: usize,
    /// Those of its fields that mean something.
    pub fields: &'static [Field],
}

/// One field of a [`Record`].
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    /// What the kernel's header calls it.
    pub name: &'static str,
    /// Where it starts, in bytes.
    pub offset: usize,
    /// Its size in bytes.
    pub len: usize,
    /// How it is shown.
    pub shape: Shape,
}

/// How a [`Field`] is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// A signed number.
    Int,
    /// An unsigned number.
    Uint,
    /// A number in hexadecimal.
    Hex,
    /// A number in octal.
    Octal,
    /// Characters up to a NUL.
    Text,
    /// Seconds and microseconds.
    Timeval,
    /// Seconds and nanoseconds.
    Timespec,
    /// A set of signals.
    Signals,
    /// A set of numbers from 0 on, one bit each.
    Set,
    /// A limit, of which all ones means none.
    Limit,
    /// Flags.
    Bits(Names),
    /// A family, and what follows from it: path, or host and port.
    SocketAddress,
}

/// What a field contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// A signed number.
    Int(i64),
    /// An unsigned number.
    Uint(u64),
    /// Anything else, in words.
    Text(String),
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => write!(f, "{number}"),
            Self::Uint(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Field {
    /// What the field contains in `record`; `None` if that is too short to have it.
    pub fn value(&self, record: &[u8]) -> Option<FieldValue> {
        let bytes = record.get(self.offset..self.offset + self.len)?;
        let number = unsigned(bytes);
        let text = FieldValue::Text;
        Some(match self.shape {
            Shape::Int => FieldValue::Int(signed(bytes)),
            Shape::Uint => FieldValue::Uint(number),
            Shape::Hex => text(format!("{number:#x}")),
            Shape::Octal => text(format!("{number:#o}")),
            Shape::Text => text(bytes.split(|&byte| byte == 0).next()?.escape_ascii().to_string()),
            Shape::Timeval => text(format!("{}.{:06}", signed(bytes.get(..8)?), unsigned(bytes.get(8..16)?))),
            // The nanoseconds of a statx_timestamp have 4 bytes, and those of a timespec fit into as many.
            Shape::Timespec => {
                text(format!("{}.{:09}", signed(bytes.get(..8)?), unsigned(bytes.get(8..12)?)))
            }
            Shape::Signals => text(signals(number)),
            Shape::Set => text(set(bytes)),
            Shape::Limit if number == u64::MAX => text("unlimited".to_owned()),
            Shape::Limit => FieldValue::Uint(number),
            Shape::SocketAddress => text(socket_address(bytes)?),
            Shape::Bits(names) => {
                let mut line = String::new();
                describe_bits(number, names, &mut line).ok()?;
                text(line)
            }
        })
    }
}

/// A number of up to 8 bytes, lowest first; of more, the first 8.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn signed(bytes: &[u8]) -> i64 {
    let unused = 64 - 8 * bytes.len().clamp(1, 8);
    (unsigned(bytes) << unused).cast_signed() >> unused
}

/// `[SIGINT SIGTERM 34]`
fn signals(set: u64) -> String {
    let members = (1..=64).filter(|signal| set >> (signal - 1) & 1 != 0);
    let names: Vec<_> = members
        .map(|signal| names::name_of_signal(signal).map_or_else(|| signal.to_string(), str::to_owned))
        .collect();
    format!("[{}]", names.join(" "))
}

/// `0-3,7`
fn set(bytes: &[u8]) -> String {
    let is_member = |index: usize| bytes.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 != 0);
    let mut ranges = Vec::new();
    let mut index = 0;
    while index < bytes.len() * 8 {
        if !is_member(index) {
            index += 1;
            continue;
        }
        let first = index;
        while is_member(index + 1) {
            index += 1;
        }
        ranges.push(if first == index { first.to_string() } else { format!("{first}-{index}") });
        index += 1;
    }
    ranges.join(",")
}

/// `UNIX "/run/x"`, `127.0.0.1:80`, `[::1]:80` (unix(7), ip(7), ipv6(7)). An unnamed one has only its family.
fn socket_address(bytes: &[u8]) -> Option<String> {
    let family = i32::from(u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    Some(match family {
        libc::AF_UNIX => {
            let path = bytes.get(2..)?;
            let end = path.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            format!("UNIX \"{}\"", path[..end].escape_ascii())
        }
        libc::AF_INET => {
            let host: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            SocketAddrV4::new(host.into(), port()?).to_string()
        }
        libc::AF_INET6 => {
            let host: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            SocketAddrV6::new(host.into(), port()?, 0, 0).to_string()
        }
        _ => format!("family {family}"),
    })
}

/// The size of the field that `_field` finds.
const fn len_of<R, F>(_field: fn(&R) -> &F) -> usize {
    size_of::<F>()
}

/// A record by its type in the kernel's headers, and those fields that are shown.
macro_rules! record {
    ($record:ty; $($field:ident: $shape:expr),* $(,)?) => {
        Record {
            len: size_of::<$record>(),
            fields: &[$(Field {
                name: stringify!($field),
                offset: offset_of!($record, $field),
                len: len_of(|record: &$record| &record.$field),
                shape: $shape,
            }),*],
        }
    };
}

/// A record that is one field.
const fn single(name: &'static [Field; 1]) -> Record {
    Record { len: name[0].len, fields: name }
}

const fn field(name: &'static str, len: usize, shape: Shape) -> Field {
    Field { name, offset: 0, len, shape }
}

use Shape::{Bits, Hex, Int, Limit, Octal, Set, Signals, Text, Timespec, Timeval, Uint};

pub(crate) const UINT: &Record = &single(&[field("value", 4, Uint)]);
pub(crate) const LONG: &Record = &single(&[field("value", 8, Int)]);
pub(crate) const ULONG: &Record = &single(&[field("value", 8, Hex)]);
pub(crate) const STATUS: &Record = &single(&[field("status", 4, Hex)]);
pub(crate) const SIGSET: &Record = &single(&[field("set", size_of::<raw::kernel_sigset_t>(), Signals)]);
/// Room for 1024 processors, as `cpu_set_t` has (CPU_SET(3)).
pub(crate) const CPUS: &Record = &single(&[field("cpus", size_of::<libc::cpu_set_t>(), Set)]);
pub(crate) const TIMESPEC: &Record = &single(&[field("time", size_of::<raw::__kernel_timespec>(), Timespec)]);
pub(crate) const TIMEVAL: &Record = &single(&[field("time", size_of::<raw::timeval>(), Timeval)]);
pub(crate) const SOCKADDR: &Record =
    &single(&[field("address", size_of::<libc::sockaddr_storage>(), Shape::SocketAddress)]);
/// Most options of sockets are a number.
pub(crate) const OPTION: &Record = &Record { len: 256, fields: &[field("value", 4, Int)] };
pub(crate) const STAT: &Record = &record!(raw::stat;
    st_dev: Hex, st_ino: Uint, st_mode: Octal, st_nlink: Uint, st_uid: Uint, st_gid: Uint, st_rdev: Hex,
    st_size: Int, st_blksize: Int, st_blocks: Int, st_atime: Int, st_mtime: Int, st_ctime: Int,
);
pub(crate) const STATX: &Record = &record!(raw::statx;
    stx_mask: Hex, stx_blksize: Uint, stx_attributes: Hex, stx_nlink: Uint, stx_uid: Uint, stx_gid: Uint,
    stx_mode: Octal, stx_ino: Uint, stx_size: Uint, stx_blocks: Uint, stx_atime: Timespec, stx_btime: Timespec,
    stx_ctime: Timespec, stx_mtime: Timespec, stx_rdev_major: Uint, stx_rdev_minor: Uint, stx_dev_major: Uint,
    stx_dev_minor: Uint, stx_mnt_id: Uint,
);
pub(crate) const STATFS: &Record = &record!(raw::statfs;
    f_type: Hex, f_bsize: Int, f_blocks: Int, f_bfree: Int, f_bavail: Int, f_files: Int, f_ffree: Int,
    f_fsid: Hex, f_namelen: Int, f_frsize: Int, f_flags: Hex,
);
pub(crate) const UTSNAME: &Record = &record!(system::new_utsname;
    sysname: Text, nodename: Text, release: Text, version: Text, machine: Text, domainname: Text,
);
pub(crate) const SYSINFO: &Record = &record!(system::sysinfo;
    uptime: Int, totalram: Uint, freeram: Uint, sharedram: Uint, bufferram: Uint, totalswap: Uint, freeswap: Uint,
    procs: Uint, mem_unit: Uint,
);
pub(crate) const TMS: &Record = &record!(libc::tms;
    tms_utime: Int, tms_stime: Int, tms_cutime: Int, tms_cstime: Int,
);
pub(crate) const RLIMIT: &Record = &record!(raw::rlimit64; rlim_cur: Limit, rlim_max: Limit);
pub(crate) const RUSAGE: &Record = &record!(raw::rusage;
    ru_utime: Timeval, ru_stime: Timeval, ru_maxrss: Int, ru_minflt: Int, ru_majflt: Int, ru_inblock: Int,
    ru_oublock: Int, ru_nvcsw: Int, ru_nivcsw: Int,
);
pub(crate) const ITIMERVAL: &Record = &record!(raw::itimerval; it_interval: Timeval, it_value: Timeval);
pub(crate) const ITIMERSPEC: &Record =
    &record!(raw::__kernel_itimerspec; it_interval: Timespec, it_value: Timespec);
pub(crate) const STACK: &Record =
    &record!(raw::stack_t; ss_sp: Hex, ss_flags: Bits(names::STACK), ss_size: Uint);
/// `struct sigaction` of the kernel (include/linux/signal_types.h), as rt_sigaction(2) leaves it: a handler of 0 is
/// `SIG_DFL`, of 1 `SIG_IGN`.
pub const SIGACTION: &Record = &record!(raw::kernel_sigaction;
    sa_handler_kernel: Hex, sa_flags: Bits(names::ACTION), sa_restorer: Hex, sa_mask: Signals,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_lies_in_its_record() {
        for record in [STAT, STATX, STATFS, UTSNAME, SYSINFO, RUSAGE, SIGACTION, STACK, SOCKADDR] {
            for field in record.fields {
                assert!(field.offset + field.len <= record.len, "{field:?}");
                assert!(field.value(&vec![0xff; record.len]).is_some(), "{field:?}");
            }
        }
    }

    #[test]
    fn a_record_that_is_cut_off_has_no_value_there() {
        assert_eq!(RLIMIT.fields[1].value(&[0; 15]), None);
    }

    #[test]
    fn values_have_their_sign_their_sets_and_their_words() {
        assert_eq!(LONG.fields[0].value(&(-3i64).to_le_bytes()), Some(FieldValue::Int(-3)));
        assert_eq!(signed(&[0xff, 0xff]), -1);
        assert_eq!(signals(1 << 1 | 1 << 14 | 1 << 33), "[SIGINT SIGTERM 34]");
        assert_eq!(socket_address(&[2, 0, 0, 80, 127, 0, 0, 1]).as_deref(), Some("127.0.0.1:80"));
        assert_eq!(socket_address(b"\x01\0/run/x\0\0").as_deref(), Some("UNIX \"/run/x\""));
        assert_eq!(set(&[0b1000_1111, 0b1]), "0-3,7-8");
        let unlimited = RLIMIT.fields[0].value(&[0xff; 16]).unwrap();
        assert_eq!(unlimited.to_string(), "unlimited");
        let time = TIMESPEC.fields[0].value(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(time.to_string(), "1.000000002");
    }
}
