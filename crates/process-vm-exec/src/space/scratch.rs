//! Memory for the buffers of calls, within the executor's pages: whoever removes these removes it too.

use std::ops::Range;
use std::sync::Mutex;

use super::Space;
use crate::error::{Error, Result};
use crate::executor::arena::Slot;
use crate::executor::layout;
use crate::sync::lock;

/// Memory of a space for the buffers of calls there: see [`Space::scratch`]. Free again when dropped.
#[derive(Debug)]
pub struct Scratch<'space> {
    shelf: &'space Shelf,
    slot: &'space Slot,
    range: Range<u64>,
}

impl Scratch<'_> {
    /// Its address in the space.
    pub fn addr(&self) -> u64 {
        self.slot.address(self.range.start)
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        lock(&self.shelf.taken).retain(|taken| *taken != self.range);
    }
}

impl Space {
    /// Memory of `len` bytes, all zeroes and aligned to 64, for the buffers of calls in this space. Unlike what
    /// [`map`](Self::map) makes, it is gone with the executor, also if this process is killed. Contents are read and
    /// written by [`read`](Self::read) and [`write`](Self::write).
    ///
    /// ```
    /// use process_vm_exec::{AddressSpace, Sysno};
    ///
    /// # fn main() -> process_vm_exec::Result<()> {
    /// let space = AddressSpace::create()?;
    /// let scratch = space.scratch(16)?;
    /// space.syscall(Sysno::getcwd, [scratch.addr(), 16, 0, 0, 0, 0])?;
    /// let mut path = [0; 16];
    /// space.read(scratch.addr(), &mut path)?;
    /// assert_eq!(&path[..2], b"/\0");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::TooMany`] if so much is not free; a space has 23 MiB.
    pub fn scratch(&self, len: u64) -> Result<Scratch<'_>> {
        self.0.shelf.take(&self.0.service.life.slot, len)
    }
}

/// Where scratch memory is taken from.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    /// By address.
    taken: Mutex<Vec<Range<u64>>>,
}

impl Shelf {
    fn take<'space>(&'space self, slot: &'space Slot, len: u64) -> Result<Scratch<'space>> {
        const ALIGNMENT: u64 = 64;
        let full = || Error::TooMany("bytes of scratch memory");
        let len = len.max(1).checked_next_multiple_of(ALIGNMENT).ok_or_else(full)?;
        let mut taken = lock(&self.taken);
        let starts = std::iter::once(layout::BUFFERS).chain(taken.iter().map(|range| range.end));
        let ends = taken.iter().map(|range| range.start).chain([layout::MAILBOXES]);
        let fits = starts.zip(ends).enumerate().find(|(_, (start, end))| end - start >= len);
        let (index, (start, _)) = fits.ok_or_else(full)?;
        let range = start..start + len;
        taken.insert(index, range.clone());
        for at in range.clone().step_by(8) {
            slot.write(at, 0u64);
        }
        Ok(Scratch { shelf: self, slot, range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::AddressSpace;

    #[test]
    fn pieces_do_not_overlap_and_are_used_again() {
        let space = AddressSpace::create().unwrap();
        let (first, second) = (space.scratch(100).unwrap(), space.scratch(1).unwrap());
        assert_eq!(second.addr(), first.addr() + 128);
        space.write(first.addr(), &[1; 128]).unwrap();
        let addr = first.addr();
        drop(first);
        assert_eq!(space.scratch(129).unwrap().addr(), second.addr() + 64);
        let again = space.scratch(128).unwrap();
        let mut bytes = [1; 128];
        space.read(again.addr(), &mut bytes).unwrap();
        assert_eq!((again.addr(), bytes), (addr, [0; 128]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let space = AddressSpace::create().unwrap();
        for len in [24 << 20, u64::MAX] {
            assert!(matches!(space.scratch(len), Err(Error::TooMany(_))), "{len}");
        }
        let all = space.scratch(23 << 20).unwrap();
        assert!(space.scratch(1).is_err());
        drop(all);
        space.scratch(23 << 20).unwrap();
    }
}
