//! The page fault's vector, and its error code (Intel SDM, volume 3, 4.7; Linux arch/x86/include/asm/trap_pf.h).

use crate::exit::Access;

pub(crate) const VECTOR: u32 = 14;

/// The page is there; what was tried is not allowed. Linux says so of all addresses of the kernel.
pub(crate) const PROTECTION: u32 = 1 << 0;
pub(crate) const WRITE: u32 = 1 << 1;
pub(crate) const USER: u32 = 1 << 2;
pub(crate) const FETCH: u32 = 1 << 4;
/// A protection key forbids it.
pub(crate) const KEY: u32 = 1 << 5;

/// What was tried, as the error code has it.
pub(crate) const fn access(error_code: u32) -> Access {
    if error_code & FETCH != 0 {
        Access::Execute
    } else if error_code & WRITE != 0 {
        Access::Write
    } else {
        Access::Read
    }
}
