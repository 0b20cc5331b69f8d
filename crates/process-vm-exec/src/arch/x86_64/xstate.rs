//! Extended state: x87, SSE, AVX, AVX-512, whatever XSAVE covers (Intel SDM, volume 1, chapter 13).

use std::arch::x86_64::{__cpuid_count, _xgetbv, CpuidResult};
use std::ops::Range;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// The AMX components. A process must ask for them (`ARCH_REQ_XCOMP_PERM`); no space does.
const AMX: u64 = 1 << 17 | 1 << 18;
/// Bytes of the legacy area and the header.
const MINIMUM: usize = 576;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
/// Legacy bytes that XSAVE leaves to software (FXSAVE too): signal frames have their magic there.
const SOFTWARE: Range<usize> = 464..512;
const XSTATE_BV: Range<usize> = 512..520;
const HEADER: Range<usize> = 512..576;
const INITIAL_MXCSR: u32 = 0x1f80;

struct Layout {
    mask: u64,
    size: usize,
    /// With what contexts do not carry.
    whole: usize,
}

fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let mask = xcr0() & !AMX;
        // Leaf 0xd: sub-leaf n tells size and offset of component n in the standard format.
        let size = (2..63)
            .filter(|component| mask >> component & 1 != 0)
            .map(|component| {
                let leaf = leaf(component);
                (leaf.eax + leaf.ebx) as usize
            })
            .fold(MINIMUM, usize::max);
        // Sub-leaf 0: the size for all that XCR0 has.
        let whole = if mask == 0 { size } else { leaf(0).ebx as usize };
        Layout { mask, size, whole: whole.max(size) }
    })
}

/// Leaf 0xd of CPUID.
fn leaf(sub_leaf: u32) -> CpuidResult {
    // SAFETY: CPUID exists on every x86-64 processor. Newer compilers than 1.88 know.
    #[allow(unused_unsafe)]
    unsafe {
        __cpuid_count(0xd, sub_leaf)
    }
}

fn xcr0() -> u64 {
    if !std::arch::is_x86_feature_detected!("xsave") {
        return 0;
    }
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: XGETBV of register 0 exists where XSAVE does, which the caller saw.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the feature has just been detected; std's detection includes OSXSAVE.
    unsafe { read() }
}

/// The components that contexts carry, as in XCR0.
pub(crate) fn mask() -> u64 {
    layout().mask
}

/// How much of an area is used: where a signal's frame has its second magic number.
pub(crate) fn used() -> usize {
    layout().size
}

/// Length in bytes of a context's extended state, in XSAVE's standard format.
pub fn size() -> usize {
    layout().size.next_multiple_of(64)
}

/// How long an area the kernel takes by ptrace(2): with all that any process may have, AMX too.
pub(crate) fn regset_len() -> usize {
    layout().whole.next_multiple_of(64)
}

/// The state of a processor that has just been initialised.
pub(crate) fn initial() -> Vec<u8> {
    let mut area = vec![0; size()];
    area[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    area[MXCSR..MXCSR + 4].copy_from_slice(&INITIAL_MXCSR.to_le_bytes());
    area
}

/// Makes what was found where a guest may write an area that [`validate`] accepts: what XSAVE wrote there stays as it
/// is, but for bytes that only signal frames have; what a guest did is without effect outside of its own space.
pub(crate) fn tidy(area: &mut [u8]) {
    area[SOFTWARE].fill(0);
    let (components, mxcsr) = (header_components(area) & mask(), mxcsr(area) & mxcsr_mask());
    area[HEADER].fill(0);
    area[XSTATE_BV].copy_from_slice(&components.to_le_bytes());
    area[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
}

fn header_components(area: &[u8]) -> u64 {
    u64::from_le_bytes(area[XSTATE_BV].try_into().expect("8 bytes"))
}

fn mxcsr(area: &[u8]) -> u32 {
    u32::from_le_bytes(area[MXCSR..MXCSR + 4].try_into().expect("4 bytes"))
}

/// XRSTOR faults on anything that this refuses.
pub(crate) fn validate(area: &[u8]) -> Result<()> {
    if area.len() != size() {
        return Err(Error::Context("its extended state has not the size that xstate() returns"));
    }
    if header_components(area) & !mask() != 0 || area[HEADER][8..].iter().any(|&byte| byte != 0) {
        return Err(Error::Context("its XSAVE header has components or bits that this processor has not"));
    }
    if mxcsr(area) & !mxcsr_mask() != 0 {
        return Err(Error::Context("its MXCSR has reserved bits set"));
    }
    Ok(())
}

/// Is an x87 exception pending: one that the status word shows and the control word does not mask?
pub(crate) fn has_x87_exception(area: &[u8]) -> bool {
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let (control, status) = (word(0), word(2));
    status & !control & 0x3f != 0
}

fn mxcsr_mask() -> u32 {
    #[repr(align(16))]
    struct Area([u8; 512]);
    static MASK: OnceLock<u32> = OnceLock::new();
    *MASK.get_or_init(|| {
        let mut area = Area([0; 512]);
        // SAFETY: FXSAVE writes the 512 aligned bytes it is given; every x86-64 processor has it.
        unsafe { std::arch::x86_64::_fxsave64(area.0.as_mut_ptr()) };
        match u32::from_le_bytes(area.0[MXCSR_MASK..MXCSR_MASK + 4].try_into().expect("4 bytes")) {
            0 => 0xffbf,
            mask => mask,
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_processor_saved_stays_as_it_is() {
        let mut area = initial();
        area[XSTATE_BV].copy_from_slice(&mask().to_le_bytes());
        area[HEADER.end..].fill(0x5a);
        let saved = area.clone();
        tidy(&mut area);
        assert!(area == saved && validate(&area).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_a_guest_wrote_is_made_loadable(
            start in proptest::collection::vec(any::<u8>(), HEADER.end),
            rest in any::<u8>(),
        ) {
            let mut area = vec![rest; size()];
            area[..HEADER.end].copy_from_slice(&start);
            prop_assert!(validate(&area).is_err());
            tidy(&mut area);
            prop_assert!(validate(&area).is_ok());
        }
    }
}
