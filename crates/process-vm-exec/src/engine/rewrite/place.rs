//! Where a page of stubs goes: where nothing is mapped, and nothing that grows comes.

use crate::arch::x86_64::USER_END;
use crate::executor::region::Region;
use crate::maps::Map;
use crate::rewriting::{LOWEST, Places, STUBS_LEN, overlap};

/// The best of the places for text at `at`.
pub(super) fn find(places: &Places, maps: &[Map], region: Region, at: u64) -> Option<u64> {
    const MARGIN: u64 = 1 << 20;
    let is_free = |&start: &u64| {
        let margin = if start == LOWEST { 0 } else { MARGIN };
        let wanted = start.saturating_sub(margin)..start.saturating_add(STUBS_LEN + margin);
        !region.touches(&wanted)
            && wanted.end < USER_END
            && !maps.iter().any(|map| overlap(&map.range, &wanted))
    };
    let text = maps.iter().find(|map| map.range.contains(&at))?;
    places.near(text.range.start).find(is_free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::Registers;
    use crate::rewriting::{Forms, Planner, Text, Unplanned};

    fn map_of(range: std::ops::Range<u64>) -> Map {
        let line = format!("{:x}-{:x} r-xp 00000000 00:00 0", range.start, range.end);
        crate::maps::parse(&line).expect("a line of the file")
    }

    /// Where stubs can be for a jump in place of a move, which can lead anywhere, in text at `at`.
    fn places_of_site(at: u64) -> Places {
        // push %rax ...; mov $1,%eax; syscall; ud2 ...
        let mut text = vec![0x50; 192];
        text.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05]);
        let rip = at + text.len() as u64;
        text.extend([0x0f, 0x0b].repeat(100));
        let registers = Registers { rip, rax: 1, ..Registers::default() };
        match Planner::of(Region::DEFAULT).plan(Text::new(at, &text), &registers, Forms::All) {
            Err(Unplanned::NoStubs(places)) => places,
            other => panic!("{other:?}"),
        }
    }

    /// Where pages of stubs go for text at `at`, one after the other, until there is no place.
    fn places_for(at: u64, mut maps: Vec<Map>) -> Vec<u64> {
        const MIB: u64 = 1 << 20;
        let places = places_of_site(at);
        let place = || {
            let start = find(&places, &maps, Region::DEFAULT, at)?;
            let around = start.saturating_sub(if start < MIB { 0 } else { MIB })..start + STUBS_LEN + MIB;
            assert!(start.abs_diff(at) < 1 << 31 && start.is_multiple_of(STUBS_LEN), "{start:#x}");
            assert_ne!(start, 0, "a null pointer leads there");
            assert!(!Region::DEFAULT.touches(&around), "{start:#x}");
            assert!(!maps.iter().any(|map| overlap(&map.range, &around)), "{start:#x}");
            maps.push(map_of(start..start + STUBS_LEN));
            Some(start)
        };
        std::iter::from_fn(place).take(100).collect()
    }

    #[test]
    fn pages_of_stubs_are_within_reach_and_away_from_all_that_grows() {
        // Text in the middle of nowhere, with 16 MiB, 64 MiB and more below it; low text; and text behind the region.
        for (at, count) in
            [(0x5555_5555_4000, 7), (0x40_1000, 4), (Region::DEFAULT.range().end + (17 << 20), 5)]
        {
            let text = map_of(at..at + 0x1000);
            assert_eq!(places_for(at, vec![text]).len(), count, "{at:#x}");
        }
        // What is there already keeps its distance: a heap just below the second place, a stack just above the third.
        let at = 0x5555_5550_0000u64;
        let below = |mib: u64| at - (mib << 20);
        let heap = map_of(below(16) - (3 << 19)..below(16) - (1 << 19));
        let stack = map_of(below(64) + STUBS_LEN + (1 << 19)..below(63) + (1 << 20));
        let places = places_for(at, vec![map_of(at..at + 0x1000), heap, stack]);
        assert_eq!(places[..2], [below(256), below(1024)]);
    }
}
