//! The addresses that a space reserves for the executor's pages.

use std::ops::Range;

use super::layout::SIZE;
use crate::error::{Error, Result};

/// A region of [`SIZE`] bytes that nothing else in a space may use. Its place is the space's; what lies where in it is the
/// same in all: see [`layout`](super::layout).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    start: u64,
}

impl Region {
    /// Far below where Linux places stacks and libraries, far above heaps and executables.
    pub(crate) const DEFAULT: Self = Self { start: 0x7000_0000_0000 };

    /// What a region's start is a multiple of: filters look at halves of addresses, of which the upper one tells the
    /// region, and the resident code computes with the lower one.
    const ALIGNMENT: u64 = 1 << 32;
    /// Above this are stacks, and the vDSO of a space that is created.
    const END: u64 = 0x7fe0_0000_0000;

    /// The region that begins at `start`.
    ///
    /// # Errors
    /// [`Error::Region`] if none can.
    pub(crate) fn at(start: u64) -> Result<Self> {
        let is_possible =
            start.is_multiple_of(Self::ALIGNMENT) && (Self::ALIGNMENT..Self::END).contains(&start);
        if is_possible { Ok(Self { start }) } else { Err(Error::Region { start }) }
    }

    /// All that are possible: the default one, those below it downwards, and then those above it upwards.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let [default, end] = [Self::DEFAULT.start, Self::END].map(|start| start / Self::ALIGNMENT);
        (1..=default).rev().chain(default + 1..end).map(|index| Self { start: index * Self::ALIGNMENT })
    }

    pub(crate) const fn start(self) -> u64 {
        self.start
    }

    pub(crate) const fn range(self) -> Range<u64> {
        self.start..self.start + SIZE
    }

    /// The address of what lies at `offset`.
    pub(crate) const fn address(self, offset: u64) -> u64 {
        self.start + offset
    }

    /// Does it share an address with this range, or contain its start?
    pub(crate) fn touches(self, range: &Range<u64>) -> bool {
        range.start < self.range().end && range.end.max(range.start.saturating_add(1)) > self.start
    }
}

/// The addresses that an [`AddressSpace`](crate::AddressSpace) and a [`LiveProcess`](crate::LiveProcess) reserve for the
/// executor's pages unless told otherwise: see [`Space::region`](crate::Space::region).
pub const DEFAULT_REGION: Range<u64> = Region::DEFAULT.range();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_begins_where_filters_and_code_can_tell_it_by_halves_of_addresses() {
        for start in [0, 1, 4096, SIZE, (1 << 32) + SIZE, Region::END, 1 << 47, !0, !0 << 32] {
            assert!(matches!(Region::at(start), Err(Error::Region { .. })), "{start:#x}");
        }
        for region in [Region::DEFAULT, Region { start: 1 << 32 }, Region { start: Region::END - (1 << 32) }]
        {
            assert_eq!(Region::at(region.start).expect("a region"), region);
        }
        let mut all: Vec<_> = Region::all().map(Region::start).collect();
        assert_eq!(all[..2], [Region::DEFAULT.start, Region::DEFAULT.start - (1 << 32)]);
        assert!(all.iter().all(|&start| Region::at(start).is_ok()));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len() as u64, Region::END / Region::ALIGNMENT - 1);
    }

    #[test]
    fn what_touches_a_region_shares_an_address_with_it() {
        let region = Region::DEFAULT;
        let Range { start, end } = region.range();
        let ranges =
            |of: &[(u64, u64)]| of.iter().map(|&(at, len)| at..at.saturating_add(len)).collect::<Vec<_>>();
        for range in ranges(&[(start, 0), (start, 1), (end - 1, 1), (start - 1, 2), (0, !0), (start + 1, !0)])
        {
            assert!(region.touches(&range), "{range:#x?}");
        }
        for range in ranges(&[(start - 1, 1), (start - 1, 0), (end, 1), (end, !0), (0, start)]) {
            assert!(!region.touches(&range), "{range:#x?}");
        }
    }
}
