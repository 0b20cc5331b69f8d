//! The service task of a process: executes system calls there for the supervisor.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::handoff::{self, Half};
use super::layout;
use super::life::Life;
use super::machine::{self, Host};
use crate::error::{Error, Result};
use crate::sync::lock;

/// One system call for the service task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) nr: i64,
    pub(crate) args: [u64; 6],
    /// For a clone: what the child becomes. A mailbox's address: its executor. A slot's offset in the memory file
    /// plus one: the service task of a process of its own.
    pub(crate) child: u64,
}

impl Entry {
    pub(crate) const fn new(nr: i64, args: [u64; 6]) -> Self {
        Self { nr, args, child: 0 }
    }
}

/// The supervisor's end of a service task.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) life: Arc<Life>,
    /// How far behind the first request and result those of this one are.
    offset: u64,
    host: Host,
    /// The word of the last request. The lock makes requests one after the other.
    last: Mutex<u32>,
}

/// The word with which a service task reports that it has started, once the supervisor has put it into the request.
pub(crate) const STARTED: u32 = 1;

impl Service {
    pub(crate) fn new(life: Arc<Life>, host: Host) -> Self {
        Self { life, offset: 0, host, last: Mutex::new(STARTED) }
    }

    /// The second service task of a slot.
    pub(crate) fn sharer(life: Arc<Life>, host: Host) -> Self {
        Self { offset: layout::SHARER, ..Self::new(life, host) }
    }

    /// Waits until the task has started.
    pub(crate) fn wait_for_start(&self) -> Result<()> {
        match handoff::wait(&self.host, &self.mine(), &self.other(), 0) {
            STARTED => Ok(()),
            _ => Err(Error::Dead),
        }
    }

    /// Executes `entries` in order, all of them whatever their results. The results come from memory that a guest
    /// can write: they are as trustworthy as the guest.
    pub(crate) fn request(&self, entries: &[Entry]) -> Result<Vec<std::result::Result<u64, Errno>>> {
        let mut results = Vec::with_capacity(entries.len());
        for entries in entries.chunks(layout::MAX_ENTRIES) {
            self.request_chunk(entries, &mut results)?;
        }
        Ok(results)
    }

    /// Executes one call.
    pub(crate) fn call(&self, nr: i64, args: [u64; 6]) -> Result<std::result::Result<u64, Errno>> {
        self.request_one(Entry::new(nr, args))
    }

    /// Executes one entry.
    pub(crate) fn request_one(&self, entry: Entry) -> Result<std::result::Result<u64, Errno>> {
        Ok(self.request(&[entry])?[0])
    }

    fn request_chunk(
        &self,
        entries: &[Entry],
        results: &mut Vec<std::result::Result<u64, Errno>>,
    ) -> Result<()> {
        let mut last = lock(&self.last);
        if self.life.status().is_some() {
            return Err(Error::Dead);
        }
        let slot = &self.life.slot;
        for (at, entry) in
            (self.offset + layout::CONTROL + layout::ENTRIES..).step_by(layout::ENTRY).zip(entries)
        {
            let [a, b, c, d, e, f] = entry.args;
            slot.write(at, [entry.nr.cast_unsigned(), a, b, c, d, e, f, entry.child]);
        }
        let count = u32::try_from(entries.len()).expect("a chunk is short");
        slot.u32(self.offset + layout::CONTROL + layout::COUNT).store(count, Ordering::Relaxed);
        let previous = *last;
        // DEAD is skipped: it means something else.
        *last = if previous >= layout::DEAD - 1 { STARTED + 1 } else { previous + 1 };
        handoff::pass(&self.host, &self.mine(), &self.other(), *last);
        match handoff::wait(&self.host, &self.mine(), &self.other(), previous) {
            word if word == *last => {}
            layout::DEAD if self.life.status().is_some() => return Err(Error::Dead),
            // Only a guest writes anything else there. What it did to the results, nobody knows.
            _ => {
                self.life.kill();
                return Err(Error::Dead);
            }
        }
        for at in
            (self.offset + layout::RESULT + layout::ENTRIES..).step_by(layout::ENTRY).take(entries.len())
        {
            results.push(result_of(slot.read::<u64>(at)));
        }
        Ok(())
    }
}

impl Service {
    fn mine(&self) -> Half<'_> {
        machine::half(&self.life.slot, self.offset + layout::CONTROL)
    }

    fn other(&self) -> Half<'_> {
        machine::half(&self.life.slot, self.offset + layout::RESULT)
    }
}

/// The kernel returns `-errno` in -4095 to -1.
fn result_of(raw: u64) -> std::result::Result<u64, Errno> {
    match raw.cast_signed() {
        negative @ -4095..=-1 => Err(Errno::from_raw_os_error(i32::try_from(-negative).expect("small"))),
        _ => Ok(raw),
    }
}
