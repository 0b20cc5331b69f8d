//! The interpreter of seccomp filters, on whatever a target has.

use libc::sock_filter;
use syscalls::Sysno;

use super::verdict;
use crate::call::Call;

/// Does a filter of these instructions (`code`, `jt`, `jf`, `k`) allow a call? None if there is no such call.
pub fn filter_allows(filter: &[(u16, u8, u8, u32)], nr: usize, args: [u64; 6]) -> Option<bool> {
    let filter: Vec<_> = filter.iter().map(|&(code, jt, jf, k)| sock_filter { code, jt, jf, k }).collect();
    Sysno::new(nr).map(|nr| verdict::allows(&filter, &Call::with_args(nr, args)))
}
