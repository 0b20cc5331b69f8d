//! The service task of a process: executes system calls there for the supervisor.
//!
//! A guest can write where its results are, so the task signs them ([`signature`](super::signature)). What the
//! supervisor writes, the guest can only read. So a request has been executed, with these results, when its report says
//! so and is signed; anything else there is a guest's, and the process is killed. Nothing is written over a request
//! before that.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::arena::Slot;
use super::handoff::{self, Half, Passed, Word};
use super::layout;
use super::life::Life;
use super::machine::{self, Host, Until};
use super::signature::Key;
use crate::call::Call;
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

impl From<&Call<'_>> for Entry {
    /// The call without its files.
    fn from(call: &Call<'_>) -> Self {
        Self::new(i64::from(call.nr().id()), call.args())
    }
}

/// The supervisor's end of a service task.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) life: Arc<Life>,
    /// How far behind the first request and result those of this one are.
    offset: u64,
    host: Host,
    key: Key,
    /// How long a request may take before the process is killed.
    time_limit: Option<Duration>,
    /// The number of the last request. The lock makes requests one after the other.
    last: Mutex<u64>,
}

/// The word, and the number, with which a service task reports that it has started, once the supervisor has put it into
/// the request.
pub(crate) const STARTED: u32 = 1;

impl Service {
    pub(crate) fn new(life: Arc<Life>, host: Host, key: Key) -> Self {
        Self { life, offset: 0, host, key, time_limit: None, last: Mutex::new(u64::from(STARTED)) }
    }

    /// The second service task of a slot.
    pub(crate) fn sharer(life: Arc<Life>, host: Host, key: Key) -> Self {
        Self { offset: layout::SHARER, ..Self::new(life, host, key) }
    }

    /// The same, whose process is killed when a request takes longer.
    pub(crate) fn with_time_limit(self, time_limit: Option<Duration>) -> Self {
        Self { time_limit, ..self }
    }

    /// Waits until the task has started.
    pub(crate) fn wait_for_start(&self) -> Result<()> {
        let until = self.until();
        let word = handoff::wait(&until, &self.mine(), &self.other(), 0, Passed::Quietly);
        self.expect(u64::from(STARTED), word, 0)?;
        self.read_one(u64::from(STARTED)).map(drop)
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

    /// Leaves an entry for a task that nobody waits for.
    pub(crate) fn leave(&self, entry: Entry) {
        let mut last = lock(&self.last);
        self.write_one(entry);
        *last = next(*last);
        self.mine().word.publish(word_of(*last));
        machine::wake(self.mine().word);
    }

    /// How long what it is asked for may take.
    pub(crate) fn time_limit(&self) -> Option<Duration> {
        self.time_limit
    }

    /// Has an executor that this task has cloned signed its first report? Nobody else in the space can.
    pub(crate) fn has_signed_start(&self, mailbox: u64) -> bool {
        /// The number of no request.
        const START_OF_EXECUTOR: u64 = 0;
        let signed = self.slot().read::<u64>(mailbox + layout::STARTED_TAG);
        signed == self.key.sign(START_OF_EXECUTOR, [self.slot().address(mailbox)])
    }

    fn write_one(&self, entry: Entry) {
        let [a, b, c, d, e, f] = entry.args;
        let request = self.offset + layout::CONTROL;
        self.slot().write(request + layout::ONE, [entry.nr.cast_unsigned(), a, b, c, d, e, f]);
        self.slot().u32(request + layout::COUNT).store(0, Ordering::Relaxed);
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

    /// The wait for what the task has been asked for.
    pub(crate) fn until(&self) -> Until<'_> {
        let deadline = self.time_limit.and_then(|limit| Instant::now().checked_add(limit));
        Until { host: self.host, life: &self.life, deadline }
    }

    /// Is `word` the end of request `number`? `seen` stood there before.
    #[inline]
    fn expect(&self, number: u64, word: u32, seen: u32) -> Result<()> {
        if word == word_of(number) { Ok(()) } else { Err(self.missed(word, seen)) }
    }

    /// Why the word of a request's end has not come.
    #[cold]
    fn missed(&self, word: u32, seen: u32) -> Error {
        if self.life.status().is_some() {
            return Error::Dead;
        }
        // Late, or somebody who has no business there has written it.
        self.life.condemn();
        match self.time_limit {
            Some(limit) if word == seen => Error::TimedOut { limit },
            _ => Error::Dead,
        }
    }

    /// The result of a single call, with which request `number` has ended.
    #[inline]
    fn read_one(&self, number: u64) -> Result<u64> {
        let [result, tag]: [u64; 2] = self.slot().read(self.offset + layout::RESULT + layout::ONE);
        self.require(tag == self.key.sign(number, [result]))?;
        Ok(result)
    }

    /// The results of `count` entries, with which request `number` has ended.
    fn read_entries(&self, number: u64, count: usize) -> Result<impl Iterator<Item = u64>> {
        let result = self.offset + layout::RESULT;
        let places = (result + layout::ENTRIES..).step_by(layout::ENTRY).take(count);
        let results: Vec<u64> = places.map(|at| self.slot().read(at)).collect();
        let tag = self.slot().read::<u64>(result + layout::TAG);
        self.require(tag == self.key.sign(number, results.iter().copied()))?;
        Ok(results.into_iter())
    }

    fn require(&self, is_signed: bool) -> Result<()> {
        if is_signed {
            return Ok(());
        }
        self.life.condemn();
        Err(Error::Dead)
    }
}

const _: () = assert!(layout::TAG == layout::ONE + 8, "read together");

/// The turn to make requests of a service task.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    service: &'a Service,
    last: MutexGuard<'a, u64>,
}

impl Turn<'_> {
    /// Executes `entries` in order, all of them whatever their results.
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
        self.service.write_one(entry);
        self.pass()?;
        self.service.read_one(*self.last).map(result_of)
    }

    fn request_chunk(&mut self, entries: &[Entry], results: &mut Vec<Outcome>) -> Result<()> {
        let service = self.service;
        let places = (service.offset + layout::CONTROL + layout::ENTRIES..).step_by(layout::ENTRY);
        for (at, entry) in places.zip(entries) {
            let [a, b, c, d, e, f] = entry.args;
            service.slot().write(at, [entry.nr.cast_unsigned(), a, b, c, d, e, f, entry.child]);
        }
        let count = u32::try_from(entries.len()).expect("a chunk is short");
        service.slot().u32(service.offset + layout::CONTROL + layout::COUNT).store(count, Ordering::Relaxed);
        self.pass()?;
        results.extend(service.read_entries(*self.last, entries.len())?.map(result_of));
        Ok(())
    }

    /// Passes the request that has been written, and waits for its end. After an error there is no further request: the
    /// process is dead or condemned, and whatever it may still be doing is done by the request that lies there.
    fn pass(&mut self) -> Result<()> {
        let service = self.service;
        let (mine, other) = (service.mine(), service.other());
        let seen = word_of(*self.last);
        *self.last = next(*self.last);
        let word = handoff::call(&service.until(), &mine, &other, word_of(*self.last), seen);
        service.expect(*self.last, word, seen)
    }
}

/// The number of the request after this one.
fn next(number: u64) -> u64 {
    // DEAD is skipped: it means something else.
    if word_of(number + 1) == layout::DEAD { number + 2 } else { number + 1 }
}

/// The lower half of a request's number, which passes control.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn word_of(number: u64) -> u32 {
    number as u32
}

/// The kernel returns `-errno` in -4095 to -1.
fn result_of(raw: u64) -> Outcome {
    match raw.cast_signed() {
        negative @ -4095..=-1 => Err(Errno::from_raw_os_error(i32::try_from(-negative).expect("small"))),
        _ => Ok(raw),
    }
}
