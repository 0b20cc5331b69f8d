//! Where pages of stubs can be.

use std::ops::Range;

use super::overlap;
use super::stub::{Jump, PAGE_LEN, values};
use crate::arch::x86_64::USER_END;

/// Where a page of stubs would help that is to be mapped for a site.
#[derive(Debug)]
pub struct Places {
    jumps: Vec<Jump>,
    /// The executor's pages, and the pages of stubs that there are.
    taken: Vec<Range<u64>>,
}

impl Places {
    pub(super) fn new(jumps: Vec<Jump>, taken: Vec<Range<u64>>) -> Self {
        Self { jumps, taken }
    }

    /// The places, the best first, each as the address of [`STUBS_LEN`](super::STUBS_LEN) bytes, for text that is mapped from
    /// `mapping` on. There are up to some ten thousands of them, in which neither the executor's pages nor other stubs are. Whoever
    /// asks knows which are free of what else is mapped, and of what will be.
    ///
    /// They are away from `mapping` by megabytes, for what may grow: a program's heap upwards behind it, other mappings
    /// downwards.
    pub fn near(&self, mapping: u64) -> impl Iterator<Item = u64> {
        self.jumps.iter().flat_map(move |jump| {
            let is_possible = |&start: &u64| {
                let page = start..start.saturating_add(PAGE_LEN);
                are_possible(&page)
                    && jump.reaches(start)
                    && !self.taken.iter().any(|taken| overlap(taken, &page))
            };
            places_of(jump, mapping).filter(is_possible)
        })
    }
}

/// Nothing is mapped below, and it is closer to a program at 4 MiB than anything that grows.
pub(crate) const LOWEST: u64 = 64 << 10;

/// Can a guest have memory there?
pub(super) fn are_possible(addresses: &Range<u64>) -> bool {
    addresses.start >= LOWEST && addresses.end < USER_END
}

fn places_of(jump: &Jump, mapping: u64) -> Box<dyn Iterator<Item = u64> + '_> {
    const MIB: u64 = 1 << 20;
    let [.., third, highest] = jump.given();
    if !third && !highest {
        let text = mapping & !(MIB - 1);
        let below = [16u64, 64, 256, 1024].into_iter().filter_map(move |mib| text.checked_sub(mib * MIB));
        let above = [1536u64, 1024, 512].into_iter().filter_map(move |mib| text.checked_add(mib * MIB));
        // A program at 4 MiB has little below.
        return Box::new(below.chain(above).chain([LOWEST]));
    }
    // Each upper half of the distance has its place. Those below first, then from far above.
    let distances = values(highest)
        .flat_map(move |highest| values(third).map(move |third| [0, 0, third, highest]))
        .map(|distance| i64::from(i32::from_le_bytes(distance)));
    let targets = distances.rev().filter_map(|distance| jump.end().checked_add_signed(distance));
    Box::new(targets.map(|target| target & !0xfff))
}
