//! What proves that a report is the service task's: a guest can write wherever the task does, but it has not the key.
//!
//! The results of calls have to lie in memory that the task can write, hence its guest too: their pages are the same.
//! What the guest cannot reach are the task's registers. So each task gets a key of its own when it starts, before there
//! is a guest beside it, keeps it in vector registers that no signal frame or context switch in user space ever shows,
//! and signs each report with SipHash-2-4 (Aumasson and Bernstein, 2012): the number of the request, then the results.
//! `code.S` has the same in some twenty instructions a word. A number is never used twice, so that no report can be
//! replayed; and whoever reports anything else has one guess of 64 bits before the space is killed.

use std::hash::Hasher;

use rustix::rand::{GetRandomFlags, getrandom};
use siphasher::sip::SipHasher24;

use super::arena::Slot;
use super::layout;
use crate::error::{Error, Result};

/// A service task's key.
#[derive(Clone, Copy)]
pub(crate) struct Key([u64; 2]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// A new one, from the kernel's random numbers.
    pub(crate) fn new() -> Result<Self> {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())
                .map_err(Error::host("getrandom for a key"))?;
        }
        let [low, high] = [0, 8].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes")));
        Ok(Self([low, high]))
    }

    /// As the task has it in its registers.
    pub(crate) fn words(self) -> [u64; 2] {
        self.0
    }

    /// Puts it where a new process takes it from.
    pub(crate) fn give(self, slot: &Slot) {
        slot.write(layout::PARAMS + layout::KEY, self.0);
    }

    /// Wipes it from there: its task has it.
    pub(crate) fn hide(slot: &Slot) {
        slot.write(layout::PARAMS + layout::KEY, [0u64; 2]);
    }

    /// What the task signs the report number `number` with.
    pub(crate) fn sign(self, number: u64, results: impl IntoIterator<Item = u64>) -> u64 {
        let mut hasher = SipHasher24::new_with_keys(self.0[0], self.0[1]);
        for word in std::iter::once(number).chain(results) {
            hasher.write(&word.to_le_bytes());
        }
        hasher.finish()
    }
}
