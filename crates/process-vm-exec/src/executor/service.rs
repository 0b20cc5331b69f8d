//! The service task of a process: executes system calls there for the supervisor.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::arena::Slot;
use super::handoff::{self, Half};
use super::layout;
use super::life::Life;
use super::machine::{self, Host};
use crate::error::{Error, Result};
use crate::sync::lock;

/// What a call came to.
pub(crate) type Outcome = std::result::Result<u64, Errno>;

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
    pub(crate) fn request(&self, entries: &[Entry]) -> Result<Vec<Outcome>> {
        let mut results = Vec::with_capacity(entries.len());
        for entries in entries.chunks(layout::MAX_ENTRIES) {
            self.request_chunk(entries, &mut results)?;
        }
        Ok(results)
    }

    /// Executes one call.
    pub(crate) fn call(&self, nr: i64, args: [u64; 6]) -> Result<Outcome> {
        self.request_one(Entry::new(nr, args))
    }

    /// Executes one entry. A plain call travels on the lines of the words that pass control.
    pub(crate) fn request_one(&self, entry: Entry) -> Result<Outcome> {
        if entry.child != 0 {
            return Ok(self.request(&[entry])?[0]);
        }
        let mut last = self.begin()?;
        let [a, b, c, d, e, f] = entry.args;
        let at = |half, offset| half + self.offset + offset;
        self.slot().write(at(layout::CONTROL, layout::ONE), [entry.nr.cast_unsigned(), a, b, c, d, e, f]);
        self.pass(&mut last, 0)?;
        Ok(result_of(self.slot().read(at(layout::RESULT, layout::ONE))))
    }

    fn request_chunk(&self, entries: &[Entry], results: &mut Vec<Outcome>) -> Result<()> {
        let mut last = self.begin()?;
        let at = |half| (self.offset + half + layout::ENTRIES..).step_by(layout::ENTRY);
        for (at, entry) in at(layout::CONTROL).zip(entries) {
            let [a, b, c, d, e, f] = entry.args;
            self.slot().write(at, [entry.nr.cast_unsigned(), a, b, c, d, e, f, entry.child]);
        }
        self.pass(&mut last, u32::try_from(entries.len()).expect("a chunk is short"))?;
        results.extend(at(layout::RESULT).take(entries.len()).map(|at| result_of(self.slot().read(at))));
        Ok(())
    }

    /// The turn to make a request, which lasts until the results have been read; an error if the task is dead.
    fn begin(&self) -> Result<MutexGuard<'_, u32>> {
        let last = lock(&self.last);
        if self.life.status().is_some() { Err(Error::Dead) } else { Ok(last) }
    }

    /// Passes a request of `count` entries, and waits for its end.
    fn pass(&self, last: &mut u32, count: u32) -> Result<()> {
        self.slot().u32(self.offset + layout::CONTROL + layout::COUNT).store(count, Ordering::Relaxed);
        let previous = *last;
        // DEAD is skipped: it means something else.
        *last = if previous >= layout::DEAD - 1 { STARTED + 1 } else { previous + 1 };
        handoff::pass(&self.host, &self.mine(), &self.other(), *last);
        match handoff::wait(&self.host, &self.mine(), &self.other(), previous) {
            word if word == *last => Ok(()),
            layout::DEAD if self.life.status().is_some() => Err(Error::Dead),
            // Only a guest writes anything else there. What it did to the results, nobody knows.
            _ => {
                self.life.kill();
                Err(Error::Dead)
            }
        }
    }
}

impl Service {
    fn slot(&self) -> &Slot {
        &self.life.slot
    }

    fn mine(&self) -> Half<'_> {
        machine::half(&self.life.slot, self.offset + layout::CONTROL)
    }

    fn other(&self) -> Half<'_> {
        machine::half(&self.life.slot, self.offset + layout::RESULT)
    }
}

/// The kernel returns `-errno` in -4095 to -1.
fn result_of(raw: u64) -> Outcome {
    match raw.cast_signed() {
        negative @ -4095..=-1 => Err(Errno::from_raw_os_error(i32::try_from(-negative).expect("small"))),
        _ => Ok(raw),
    }
}
