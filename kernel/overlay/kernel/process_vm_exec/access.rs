// SPDX-License-Identifier: GPL-2.0-only

//! The target's memory, and whether the caller may have it.

use crate::{arguments::Target, state::Memory};
use kernel::{
    bindings,
    error::{code::*, from_err_ptr, Result},
    ffi::c_uint,
};

/// The last access that was allowed.
///
/// Who makes the call in a loop has the same memory each time. Rights are looked at anew when
/// anything that they depend on has changed; what a security module has to say is asked for then,
/// as it is when a debugger attaches.
#[derive(Default)]
pub(crate) struct Access {
    last: Option<Noted>,
}

/// An access, and what it depended on.
struct Noted {
    target: Target,
    what: bindings::process_vm_exec_access,
}

impl Access {
    /// The target's memory.
    pub(crate) fn to(&mut self, target: Target) -> Result<Memory> {
        if let Some(memory) = self.again(target) {
            return Ok(memory);
        }
        self.last = None;
        let task = find(target)?;
        let mut what = Default::default();
        // SAFETY: There is a reference to `task`, and it is given back after the last use. `what`
        // can be written.
        let mm = unsafe {
            let mm = bindings::process_vm_exec_access(task, &mut what);
            bindings::put_task_struct(task);
            mm
        };
        let mm = from_err_ptr(mm).map_err(|error| if error == EACCES { EPERM } else { error })?;
        let noted = Noted { target, what };
        // A number belongs to one process as long as that lives; a descriptor may be another's at
        // the next call.
        self.last = matches!(target, Target::Pid(_)).then_some(noted);
        // SAFETY: The function has returned a reference.
        Ok(unsafe { Memory::from_raw(mm) })
    }

    /// The same memory as last time, if it was that of the same target.
    fn again(&self, target: Target) -> Option<Memory> {
        let noted = self.last.as_ref().filter(|noted| noted.target == target)?;
        // SAFETY: `what` has been noted, and has its references.
        let mm = unsafe { bindings::process_vm_exec_access_again(&noted.what) };
        // SAFETY: If it is not null, the function has returned a reference.
        (!mm.is_null()).then(|| unsafe { Memory::from_raw(mm) })
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        // SAFETY: `what` has been noted, and nobody uses it after this.
        unsafe { bindings::process_vm_exec_access_drop(&mut self.what) };
    }
}

/// The target, with a reference.
fn find(target: Target) -> Result<*mut bindings::task_struct> {
    let task = match target {
        // SAFETY: Any number will do.
        Target::Pid(pid) => unsafe { bindings::find_get_task_by_vpid(pid) },
        Target::Pidfd(fd) => {
            let mut flags: c_uint = 0;
            // SAFETY: The descriptor is checked by the function; `flags` can be written.
            from_err_ptr(unsafe { bindings::pidfd_get_task(fd, &mut flags) })?
        }
    };
    if task.is_null() {
        return Err(ESRCH);
    }
    Ok(task)
}
