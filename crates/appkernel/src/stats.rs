//! Counts of what happened: system calls by number, other exits by kind.

use process_vm_exec::{Arch, Syscall};
use syscalls::Sysno;

use crate::{abi::size, dispatch};

/// Numbers of system calls that are counted one by one; the rest are counted together.
const NUMBERS: usize = 512;

/// Counts of what happened.
#[derive(Clone, Debug)]
pub struct Stats {
    by_number: Box<[u64; NUMBERS]>,
    /// System calls with a number that Linux does not have.
    pub beyond: u64,
    /// System calls by `int 0x80`.
    pub i386: u64,
    /// Exceptions of the processor.
    pub faults: u64,
    /// Signals from outside.
    pub signals: u64,
    /// Runs that this process ended itself.
    pub interruptions: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            by_number: Box::new([0; NUMBERS]),
            beyond: 0,
            i386: 0,
            faults: 0,
            signals: 0,
            interruptions: 0,
        }
    }
}

impl Stats {
    pub(crate) fn count(&mut self, call: &Syscall) {
        let counter = match call.arch {
            Arch::I386 => &mut self.i386,
            Arch::X86_64 => match self.by_number.get_mut(size(call.nr)) {
                Some(counter) => counter,
                None => &mut self.beyond,
            },
        };
        *counter += 1;
    }

    /// Each system call that was made, with its name and how often, the most frequent first.
    pub fn syscalls(&self) -> Vec<(String, u64)> {
        let mut counts: Vec<_> = self.made().map(|(number, count)| (name(number), count)).collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counts
    }

    /// The names of the system calls that were made and are not implemented.
    pub fn unknown(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .made()
            .filter(|&(number, _)| dispatch::handler(number as u64).is_none())
            .map(|(number, _)| name(number))
            .collect();
        if self.beyond > 0 {
            names.push("numbers that Linux does not have".to_owned());
        }
        if self.i386 > 0 {
            names.push("32-bit calls (int 0x80)".to_owned());
        }
        names
    }

    fn made(&self) -> impl Iterator<Item = (usize, u64)> {
        self.by_number.iter().copied().enumerate().filter(|&(_, count)| count > 0)
    }
}

/// A system call's name, or `syscall_NUMBER`.
pub(crate) fn name(number: usize) -> String {
    Sysno::new(number).map_or_else(|| format!("syscall_{number}"), |sysno| sysno.name().to_owned())
}
