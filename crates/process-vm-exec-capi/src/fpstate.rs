//! Floating-point state as signal frames have it: `struct _fpstate_64`, and behind it what XSAVE covers
//! (arch/x86/include/uapi/asm/sigcontext.h).

use std::ops::Range;

use process_vm_exec::Errno;

/// Bytes of `struct _fpstate_64`, which FXSAVE writes.
pub(crate) const LEGACY_LEN: usize = 512;
/// And with the header of XSAVE.
const MINIMUM_XSAVE_LEN: usize = LEGACY_LEN + 64;
/// `struct _fpx_sw_bytes`: magic1, extended_size, xfeatures, xstate_size, padding.
const SOFTWARE: Range<usize> = 464..512;
const MAGIC1: u32 = 0x4650_5853;
/// Stands behind the XSAVE area.
const MAGIC2: u32 = 0x4650_5845;
const MAGIC2_LEN: usize = 4;
const HEADER: Range<usize> = 512..576;
/// XSTATE_BV: which components are not as a processor has them at first.
const COMPONENTS: Range<usize> = 512..520;
const X87_AND_SSE: u64 = 3;

/// A caller's floating-point state.
#[derive(Clone, Debug)]
pub(crate) struct FpState {
    /// What `uctx->fpstate` points to, [`len`] bytes.
    pub(crate) bytes: Vec<u8>,
}

/// How long the state is that starts with these [`LEGACY_LEN`] bytes.
///
/// # Errors
/// `EINVAL` if its lengths contradict each other.
pub(crate) fn len(legacy: &[u8]) -> Result<usize, Errno> {
    if u32_at(legacy, SOFTWARE.start) != MAGIC1 {
        return Ok(LEGACY_LEN);
    }
    let [extended, xsave] = [u32_at(legacy, SOFTWARE.start + 4), u32_at(legacy, SOFTWARE.start + 16)];
    let [extended, xsave] = [extended as usize, xsave as usize];
    // Much more than any processor has today: nobody makes us copy gigabytes.
    let limit = process_vm_exec::xstate_size() + 16 * 1024;
    if xsave < MINIMUM_XSAVE_LEN || xsave > limit || extended < xsave + MAGIC2_LEN {
        return Err(Errno::INVAL);
    }
    Ok(xsave + MAGIC2_LEN)
}

impl FpState {
    /// The area that a context takes. `initial` is that of a processor just initialised.
    ///
    /// As rt_sigreturn(2) does: a state without both magic numbers is what FXSAVE writes, and then other components
    /// are as a processor has them at first.
    pub(crate) fn to_area(&self, initial: &[u8]) -> Vec<u8> {
        let mut area = initial.to_vec();
        let components = match self.xsave_len() {
            Some(len) => {
                let len = len.min(area.len());
                area[..len].copy_from_slice(&self.bytes[..len]);
                u64_at(&self.bytes, COMPONENTS.start) & u64_at(&self.bytes, SOFTWARE.start + 8)
            }
            None => {
                area[..LEGACY_LEN].copy_from_slice(&self.bytes[..LEGACY_LEN]);
                X87_AND_SSE
            }
        };
        area[SOFTWARE].fill(0);
        area[COMPONENTS].copy_from_slice(&components.to_ne_bytes());
        area
    }

    /// Takes what the code left; the caller's magic numbers and lengths stay.
    pub(crate) fn store(&mut self, area: &[u8]) {
        self.bytes[..SOFTWARE.start].copy_from_slice(&area[..SOFTWARE.start]);
        if let Some(len) = self.xsave_len() {
            let len = len.min(area.len());
            self.bytes[HEADER.start..len].copy_from_slice(&area[HEADER.start..len]);
            // Components for which the caller has no room, or did not ask, are not there.
            let wanted = u64_at(&self.bytes, SOFTWARE.start + 8);
            let components = u64_at(area, COMPONENTS.start) & wanted;
            self.bytes[COMPONENTS].copy_from_slice(&components.to_ne_bytes());
        }
    }

    /// The length of its XSAVE area, if it has one.
    fn xsave_len(&self) -> Option<usize> {
        let len = self.bytes.len().checked_sub(MAGIC2_LEN)?;
        (len >= MINIMUM_XSAVE_LEN && u32_at(&self.bytes, len) == MAGIC2).then_some(len)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use process_vm_exec::Context;

    fn initial() -> Vec<u8> {
        Context::new(0, 0).xstate().expect("nothing is fetched").to_vec()
    }

    /// A state as in a signal frame of this processor.
    fn frame() -> FpState {
        let area = initial();
        let len = area.len();
        let mut bytes = area;
        bytes.extend(MAGIC2.to_ne_bytes());
        let length = |len: usize| u32::try_from(len).expect("short").to_ne_bytes();
        bytes[464..468].copy_from_slice(&MAGIC1.to_ne_bytes());
        bytes[468..472].copy_from_slice(&length(len + 4));
        bytes[472..480].copy_from_slice(&7u64.to_ne_bytes());
        bytes[480..484].copy_from_slice(&length(len));
        FpState { bytes }
    }

    #[test]
    fn a_state_without_magic_is_512_bytes_and_clears_the_rest() {
        let mut state = FpState { bytes: vec![0; LEGACY_LEN] };
        state.bytes[160] = 7;
        assert_eq!(len(&state.bytes), Ok(LEGACY_LEN));
        let area = state.to_area(&initial());
        assert_eq!((area[160], u64_at(&area, 512)), (7, X87_AND_SSE));
        let mut changed = area.clone();
        changed[160] = 8;
        state.store(&changed);
        assert_eq!((state.bytes[160], state.bytes.len()), (8, LEGACY_LEN));
    }

    #[test]
    fn an_xsave_area_keeps_its_magic_and_its_components() {
        let mut state = frame();
        assert_eq!(len(&state.bytes), Ok(state.bytes.len()));
        state.bytes[512] = 7;
        state.bytes[576] = 9;
        let area = state.to_area(&initial());
        assert_eq!((area[512], area[576], area[464]), (7, 9, 0));
        let mut changed = area.clone();
        changed[576] = 10;
        state.store(&changed);
        assert_eq!((state.bytes[576], u32_at(&state.bytes, 464)), (10, MAGIC1));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        for (at, value) in [(480, 100u32), (480, u32::MAX), (468, 576)] {
            let mut state = frame();
            state.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            assert_eq!(len(&state.bytes), Err(Errno::INVAL), "{value} at {at}");
        }
    }
}
