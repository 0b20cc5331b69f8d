//! The service task of a process: executes system calls there for the supervisor.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::arena::Slot;
use super::handoff::{self, Half, Passed};
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
        match handoff::wait(&self.host, &self.mine(), &self.other(), 0, Passed::Quietly) {
            STARTED => Ok(()),
            _ => Err(Error::Dead),
        }
    }

    /// The turn to make requests, which come one after the other; an error if the task is dead.
    pub(crate) fn turn(&self) -> Result<Turn<'_>> {
        let last = lock(&self.last);
        if self.life.status().is_some() { Err(Error::Dead) } else { Ok(Turn { service: self, last }) }
    }

    /// Executes entries: see [`Turn::request`].
    pub(crate) fn request(&self, entries: &[Entry]) -> Result<Vec<Outcome>> {
        self.turn()?.request(entries)
    }

    /// Executes one call.
    pub(crate) fn call(&self, nr: i64, args: [u64; 6]) -> Result<Outcome> {
        self.request_one(Entry::new(nr, args))
    }

    /// Executes one entry: see [`Turn::request_one`].
    pub(crate) fn request_one(&self, entry: Entry) -> Result<Outcome> {
        self.turn()?.request_one(entry)
    }

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

/// The turn to make requests of a service task.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    service: &'a Service,
    last: MutexGuard<'a, u32>,
}

impl Turn<'_> {
    /// Executes `entries` in order, all of them whatever their results. The results come from memory that a guest
    /// can write: they are as trustworthy as the guest.
    pub(crate) fn request(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>> {
        let mut results = Vec::with_capacity(entries.len());
        for entries in entries.chunks(layout::MAX_ENTRIES) {
            self.request_chunk(entries, &mut results)?;
        }
        Ok(results)
    }

    /// Executes one entry. A plain call travels on the lines of the words that pass control.
    pub(crate) fn request_one(&mut self, entry: Entry) -> Result<Outcome> {
        if entry.child != 0 {
            return Ok(self.request(&[entry])?[0]);
        }
        let [a, b, c, d, e, f] = entry.args;
        let (slot, offset) = (self.service.slot(), self.service.offset + layout::ONE);
        slot.write(layout::CONTROL + offset, [entry.nr.cast_unsigned(), a, b, c, d, e, f]);
        self.pass(0)?;
        Ok(result_of(slot.read(layout::RESULT + offset)))
    }

    fn request_chunk(&mut self, entries: &[Entry], results: &mut Vec<Outcome>) -> Result<()> {
        let Service { offset, .. } = *self.service;
        let slot = self.service.slot();
        let at = |half| (offset + half + layout::ENTRIES..).step_by(layout::ENTRY);
        for (at, entry) in at(layout::CONTROL).zip(entries) {
            let [a, b, c, d, e, f] = entry.args;
            slot.write(at, [entry.nr.cast_unsigned(), a, b, c, d, e, f, entry.child]);
        }
        self.pass(u32::try_from(entries.len()).expect("a chunk is short"))?;
        results.extend(at(layout::RESULT).take(entries.len()).map(|at| result_of(slot.read(at))));
        Ok(())
    }

    /// Passes a request of `count` entries, and waits for its end.
    fn pass(&mut self, count: u32) -> Result<()> {
        let service = self.service;
        let (mine, other) = (service.mine(), service.other());
        service.slot().u32(service.offset + layout::CONTROL + layout::COUNT).store(count, Ordering::Relaxed);
        let previous = *self.last;
        // DEAD is skipped: it means something else.
        *self.last = if previous >= layout::DEAD - 1 { STARTED + 1 } else { previous + 1 };
        match handoff::call(&service.host, &mine, &other, *self.last, previous) {
            word if word == *self.last => Ok(()),
            layout::DEAD if service.life.status().is_some() => Err(Error::Dead),
            // Only a guest writes anything else there. What it did to the results, nobody knows.
            _ => {
                service.life.kill();
                Err(Error::Dead)
            }
        }
    }
}

/// The kernel returns `-errno` in -4095 to -1.
fn result_of(raw: u64) -> Outcome {
    match raw.cast_signed() {
        negative @ -4095..=-1 => Err(Errno::from_raw_os_error(i32::try_from(-negative).expect("small"))),
        _ => Ok(raw),
    }
}
