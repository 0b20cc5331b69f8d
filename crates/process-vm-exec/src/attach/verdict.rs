//! What a thread's seccomp filters say to calls, before it makes them.

use rustix::io::Errno;

use super::rights::Status;
use super::visit::refusal;
use crate::error::Result;
use crate::space::Call;

/// That nothing judges the thread's calls but to allow them.
pub(super) fn require_allowed(tid: i32, _calls: &[Call]) -> Result<()> {
    let status = Status::of(tid).map_err(|_| refusal(tid, Errno::SRCH, "it has just ended"))?;
    if status.has_seccomp_filter() {
        return Err(refusal(tid, Errno::PERM, "a seccomp filter judges its calls"));
    }
    Ok(())
}
