//! What is mapped: /proc/PID/smaps (proc_pid_smaps(5)).
//!
//! The parser is our own because `procfs` drops flags that it does not know, such as `sl` (sealed), and expects of names
//! what a process need not give them.

use std::{io::Read, ops::Range};

use procfs::process::Process;
use serde::Serialize;

use super::report::hex;

/// All mappings and their sums.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) total: Usage,
    pub(crate) mappings: Vec<Mapping>,
}

/// One mapping.
#[derive(Debug, Serialize)]
pub(crate) struct Mapping {
    /// The first address, and the first one behind it.
    #[serde(serialize_with = "hex")]
    pub(crate) start: u64,
    #[serde(serialize_with = "hex")]
    pub(crate) end: u64,
    /// `r-xp`
    pub(crate) permissions: String,
    /// Where in the file it starts.
    pub(crate) offset: u64,
    pub(crate) device: String,
    pub(crate) inode: u64,
    /// A path, a name in brackets, or nothing for anonymous memory.
    pub(crate) name: String,
    /// `VmFlags`: two letters each.
    pub(crate) flags: Vec<String>,
    pub(crate) usage: Usage,
}

/// How much memory is used, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub(crate) size: u64,
    pub(crate) resident: u64,
    /// Resident, but shared pages count in parts: one half if two processes have it.
    pub(crate) proportional: u64,
    pub(crate) private_dirty: u64,
    pub(crate) anonymous: u64,
    pub(crate) huge: u64,
    pub(crate) swapped: u64,
    pub(crate) locked: u64,
}

impl Memory {
    pub(crate) fn of(process: &Process) -> Result<Self, String> {
        let mut text = Vec::new();
        let mut file = process.open_relative("smaps").map_err(|error| error.to_string())?;
        file.read_to_end(&mut text).map_err(|error| error.to_string())?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    fn parse(text: &str) -> Self {
        let mut mappings: Vec<Mapping> = Vec::new();
        for line in text.lines() {
            if let Some(mapping) = Mapping::parse(line) {
                mappings.push(mapping);
            } else if let (Some(mapping), Some((key, value))) = (mappings.last_mut(), line.split_once(':')) {
                mapping.add(key, value);
            }
        }
        let mut total = Usage::default();
        for mapping in &mappings {
            total.add(&mapping.usage);
        }
        Self { total, mappings }
    }

    /// Where `addr` is, as file and offset: `/usr/lib/libc.so.6+0x42520`.
    pub(crate) fn place(&self, addr: u64) -> Option<String> {
        let mapping = self.mappings.iter().find(|mapping| mapping.range().contains(&addr))?;
        let offset = addr - mapping.start + mapping.offset;
        (!mapping.name.is_empty()).then(|| format!("{}+{offset:#x}", mapping.name))
    }
}

impl Mapping {
    /// `7f12-7f13 r-xp 00001000 08:01 42   /usr/lib/libc.so.6`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        Some(Self {
            start: hex(start)?,
            end: hex(end)?,
            permissions: words.next()?.to_owned(),
            offset: hex(words.next()?)?,
            device: words.next()?.to_owned(),
            inode: words.next()?.parse().ok()?,
            name: words.next().unwrap_or("").trim_start().to_owned(),
            flags: Vec::new(),
            usage: Usage::default(),
        })
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    fn add(&mut self, key: &str, value: &str) {
        if key == "VmFlags" {
            self.flags = value.split_whitespace().map(str::to_owned).collect();
            return;
        }
        let Some(kilobytes) = value.trim().strip_suffix(" kB").and_then(|number| number.parse::<u64>().ok())
        else {
            return;
        };
        let usage = &mut self.usage;
        let field = match key {
            "Size" => &mut usage.size,
            "Rss" => &mut usage.resident,
            "Pss" => &mut usage.proportional,
            "Private_Dirty" => &mut usage.private_dirty,
            "Anonymous" => &mut usage.anonymous,
            "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" | "Shared_Hugetlb" | "Private_Hugetlb" => {
                &mut usage.huge
            }
            "Swap" => &mut usage.swapped,
            "Locked" => &mut usage.locked,
            _ => return,
        };
        *field = field.saturating_add(kilobytes.saturating_mul(1024));
    }
}

impl Usage {
    fn add(&mut self, other: &Self) {
        self.size += other.size;
        self.resident += other.resident;
        self.proportional += other.proportional;
        self.private_dirty += other.private_dirty;
        self.anonymous += other.anonymous;
        self.huge += other.huge;
        self.swapped += other.swapped;
        self.locked += other.locked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
1000-3000 r-xp 00001000 08:01 42         /a file: with odd name
Size:                  8 kB
Rss:                   4 kB
Private_Dirty:         4 kB
THPeligible:           0
VmFlags: rd ex mr sl zz 
3000-4000 rw-p 00000000 00:00 0 
Size:                  4 kB
Rss:                   4 kB
VmFlags: rd wr 
";

    #[test]
    fn mappings_keep_their_names_and_flags_unknown_ones_too() {
        let memory = Memory::parse(TEXT);
        assert_eq!(memory.mappings.len(), 2);
        assert_eq!(memory.mappings[0].name, "/a file: with odd name");
        assert_eq!(memory.mappings[0].flags, ["rd", "ex", "mr", "sl", "zz"]);
        assert_eq!(memory.mappings[1].name, "");
    }

    #[test]
    fn totals_are_the_sums_of_all_mappings() {
        let total = Memory::parse(TEXT).total;
        assert_eq!(
            total,
            Usage { size: 12 << 10, resident: 8 << 10, private_dirty: 4 << 10, ..Usage::default() }
        );
    }

    #[test]
    fn an_address_is_placed_in_its_file() {
        let memory = Memory::parse(TEXT);
        assert_eq!(memory.place(0x1010).as_deref(), Some("/a file: with odd name+0x1010"));
        assert_eq!(memory.place(0x3010), None);
        assert_eq!(memory.place(0x9000), None);
    }

    #[test]
    fn a_processs_own_stack_is_among_its_mappings() {
        let memory = Memory::of(&Process::myself().unwrap()).unwrap();
        let stack = memory.mappings.iter().find(|mapping| mapping.name == "[stack]").expect("a stack");
        assert!(stack.flags.iter().any(|flag| flag == "gd"), "it grows down: {stack:?}");
    }
}
