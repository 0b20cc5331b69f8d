//! Counts of what happened: system calls by number, other exits by kind.

use process_vm_exec::{Arch, Calls, Syscall};
use syscalls::Sysno;

use crate::{abi::size, dispatch};

/// Numbers of system calls that are counted one by one; the rest are counted together.
const NUMBERS: usize = 512;

/// Counts of what happened.
#[derive(Clone, Debug)]
pub struct Stats {
    by_number: Box<[u64; NUMBERS]>,
    /// System calls by how they got here, of all programs that have ended or been replaced.
    pub calls: Calls,
    /// The sites that were rewritten when those programs came to their end.
    pub rewritten_sites: usize,
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
            calls: Calls::default(),
            rewritten_sites: 0,
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

    /// A program is over, or replaced: its context and its address space have counted this.
    pub(crate) fn add_program(&mut self, calls: Calls, rewritten_sites: usize) {
        self.calls.rewritten += calls.rewritten;
        self.calls.trapped += calls.trapped;
        self.rewritten_sites += rewritten_sites;
    }

    /// The share of system calls that came without a signal, in percent.
    pub fn rewritten_percent(&self) -> f64 {
        let Calls { rewritten, trapped } = self.calls;
        100.0 * rewritten as f64 / (rewritten + trapped).max(1) as f64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_added_up() {
        let mut stats = Stats::default();
        assert_eq!(stats.rewritten_percent(), 0.0, "no call is no share");
        stats.add_program(Calls { rewritten: 0, trapped: 10 }, 0);
        stats.add_program(Calls { rewritten: 30, trapped: 0 }, 3);
        assert_eq!(stats.calls, Calls { rewritten: 30, trapped: 10 });
        assert_eq!(stats.rewritten_sites, 3);
        assert_eq!(stats.rewritten_percent(), 75.0);
    }
}
