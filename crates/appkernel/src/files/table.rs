//! The file table: the guest's descriptor numbers and the host's descriptors behind them.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use process_vm_exec::Errno;

use crate::{abi::Answer, guest::GuestMemory, task::Task};

/// The descriptors that a program has when it starts.
const STANDARD: usize = 3;
/// The most descriptors of a guest, whatever its limit says (`NR_OPEN`, linux/fs.h).
const DESCRIPTORS_MAX: usize = 1 << 20;

/// What `execve` does with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cloexec {
    /// Closes it (`FD_CLOEXEC`).
    Yes,
    /// Leaves it open.
    No,
}

impl Cloexec {
    /// From `O_CLOEXEC` among the flags of a call; the flags of other calls have the same value.
    pub(crate) const fn from_flags(flags: i32) -> Self {
        if flags & libc::O_CLOEXEC != 0 { Self::Yes } else { Self::No }
    }
}

/// One descriptor.
#[derive(Clone, Debug)]
struct Entry {
    /// Shared by duplicates: they have one offset and one set of flags.
    file: Arc<OwnedFd>,
    cloexec: Cloexec,
}

/// The descriptors of a process.
#[derive(Debug)]
pub(crate) struct FileTable {
    entries: Vec<Option<Entry>>,
    limit: usize,
}

impl FileTable {
    /// A table with this process's standard descriptors.
    pub(crate) fn inherit() -> Result<Self, Errno> {
        let mut table = Self { entries: Vec::new(), limit: STANDARD };
        for fd in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
            let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
            table.insert(fd, Cloexec::No)?;
        }
        table.set_limit(crate::limits::Limits::default().descriptors());
        Ok(table)
    }

    /// The host's descriptor behind `fd`.
    pub(crate) fn get(&self, fd: i32) -> Result<BorrowedFd<'_>, Errno> {
        self.entry(fd).map(|entry| entry.file.as_fd())
    }

    /// Gives `file` the lowest free number.
    pub(crate) fn insert(&mut self, file: OwnedFd, cloexec: Cloexec) -> Result<i32, Errno> {
        self.insert_entry(Entry { file: Arc::new(file), cloexec }, 0)
    }

    /// Gives the file of `fd` another number, the lowest free one from `at_least` on.
    pub(crate) fn duplicate(&mut self, fd: i32, at_least: i32, cloexec: Cloexec) -> Result<i32, Errno> {
        let file = Arc::clone(&self.entry(fd)?.file);
        let start = usize::try_from(at_least).map_err(|_| Errno::INVAL)?;
        if start >= self.limit {
            return Err(Errno::INVAL);
        }
        self.insert_entry(Entry { file, cloexec }, start)
    }

    /// Gives the file of `fd` the number `to`, closing what has it.
    pub(crate) fn duplicate_to(&mut self, fd: i32, to: i32, cloexec: Cloexec) -> Result<(), Errno> {
        let file = Arc::clone(&self.entry(fd)?.file);
        let slot = usize::try_from(to).map_err(|_| Errno::BADF)?;
        if slot >= self.limit {
            return Err(Errno::BADF);
        }
        *self.slot(slot) = Some(Entry { file, cloexec });
        Ok(())
    }

    pub(crate) fn close(&mut self, fd: i32) -> Result<(), Errno> {
        let slot = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        let entry = self.entries.get_mut(slot).and_then(Option::take);
        entry.map(drop).ok_or(Errno::BADF)
    }

    /// Calls `action` with each number in use from `first` to `last`.
    pub(crate) fn in_use(&self, first: u64, last: u64) -> Vec<i32> {
        let numbers = self.entries.iter().enumerate().filter(|(_, entry)| entry.is_some());
        let within = numbers.filter(|&(number, _)| first <= number as u64 && number as u64 <= last);
        within.filter_map(|(number, _)| i32::try_from(number).ok()).collect()
    }

    pub(crate) fn cloexec(&self, fd: i32) -> Result<Cloexec, Errno> {
        self.entry(fd).map(|entry| entry.cloexec)
    }

    pub(crate) fn set_cloexec(&mut self, fd: i32, cloexec: Cloexec) -> Result<(), Errno> {
        let slot = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        let entry = self.entries.get_mut(slot).and_then(Option::as_mut).ok_or(Errno::BADF)?;
        entry.cloexec = cloexec;
        Ok(())
    }

    /// Numbers from `limit` on are not given out (`RLIMIT_NOFILE`).
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = usize::try_from(limit).unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
    }

    /// Closes what `execve` closes.
    pub(crate) fn close_on_exec(&mut self) {
        for slot in &mut self.entries {
            slot.take_if(|entry| entry.cloexec == Cloexec::Yes);
        }
    }

    fn entry(&self, fd: i32) -> Result<&Entry, Errno> {
        let slot = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        self.entries.get(slot).and_then(Option::as_ref).ok_or(Errno::BADF)
    }

    fn insert_entry(&mut self, entry: Entry, start: usize) -> Result<i32, Errno> {
        let free = self.entries.iter().skip(start).position(Option::is_none);
        let number = free.map_or(self.entries.len().max(start), |free| start + free);
        if number >= self.limit {
            return Err(Errno::MFILE);
        }
        *self.slot(number) = Some(entry);
        i32::try_from(number).map_err(|_| Errno::MFILE)
    }

    fn slot(&mut self, number: usize) -> &mut Option<Entry> {
        if number >= self.entries.len() {
            self.entries.resize(number + 1, None);
        }
        &mut self.entries[number]
    }
}

impl Task {
    /// Gives two files the lowest free numbers and writes these to `addr`. The guest gets both or none.
    pub(crate) fn insert_pair(
        &mut self,
        addr: u64,
        one: OwnedFd,
        other: OwnedFd,
        cloexec: Cloexec,
    ) -> Answer {
        let one = self.files.insert(one, cloexec)?;
        let inserted = self.files.insert(other, cloexec).and_then(|other| {
            let numbers = [one.to_ne_bytes(), other.to_ne_bytes()].concat();
            self.space.store(addr, &numbers).inspect_err(|_| {
                let _ = self.files.close(other);
            })
        });
        if inserted.is_err() {
            self.files.close(one)?;
        }
        inserted.map(|()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_file() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("/dev/null is there").into()
    }

    #[test]
    fn new_descriptors_get_the_lowest_free_number() {
        let mut table = FileTable::inherit().unwrap();
        assert_eq!(table.insert(some_file(), Cloexec::No), Ok(3));
        assert_eq!(table.insert(some_file(), Cloexec::Yes), Ok(4));
        table.close(1).unwrap();
        assert_eq!(table.insert(some_file(), Cloexec::No), Ok(1));
        assert_eq!(table.duplicate(3, 10, Cloexec::No), Ok(10));
        assert_eq!(table.duplicate(3, 0, Cloexec::No), Ok(5));
    }

    #[test]
    fn execve_closes_what_is_marked() {
        let mut table = FileTable::inherit().unwrap();
        table.insert(some_file(), Cloexec::Yes).unwrap();
        table.close_on_exec();
        assert_eq!(table.get(3).err(), Some(Errno::BADF));
        assert!(table.get(2).is_ok());
    }

    #[test]
    fn the_limit_bounds_numbers() {
        let mut table = FileTable::inherit().unwrap();
        table.set_limit(4);
        assert_eq!(table.insert(some_file(), Cloexec::No), Ok(3));
        assert_eq!(table.insert(some_file(), Cloexec::No), Err(Errno::MFILE));
        assert_eq!(table.duplicate_to(0, 4, Cloexec::No), Err(Errno::BADF));
        assert_eq!(table.duplicate(0, 4, Cloexec::No), Err(Errno::INVAL));
    }
}
