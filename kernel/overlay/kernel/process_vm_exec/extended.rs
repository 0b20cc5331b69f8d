// SPDX-License-Identifier: GPL-2.0-only

//! Extended state: floating-point and vector registers, and the rights of protection keys.

use crate::{arguments::eopnotsupp, user};
use kernel::{
    bindings,
    error::{code::*, Result},
    prelude::*,
};

/// Bytes of the FXSAVE area, its part for software, and where the members of that are.
const FXSAVE: usize = 512;
const SOFTWARE: usize = 464;
const SOFTWARE_XSTATE_SIZE: usize = SOFTWARE + 16;
/// Where the XSAVE header starts: a bitmap of the components that are not in their initial state.
const HEADER: usize = FXSAVE;
const X87_AND_SSE: u64 = 0b11;

const CONTROL_WORD: usize = 0;
const CONTROL_WORD_INITIAL: u16 = 0x37f;
const MXCSR: usize = 24;
const MXCSR_INITIAL: u32 = 0x1f80;
const MAGIC2_LEN: usize = 4;

/// The extended state of the code inside, while it does not run.
///
/// The kernel keeps it in the format in which the processor saves it; user space's is another, so
/// that it goes through a buffer.
pub(crate) struct Extended {
    fpu: bindings::fpu_guest,
    pub(crate) pkru: u32,
    /// The memory whose code has left this state here: `mm->context.ctx_id`, which is never used
    /// twice. 0 is none.
    memory: u64,
    buffer: KVVec<u8>,
    /// Whether the processor has it, or will have it when the task runs.
    in_use: bool,
}

/// Which form user space's area has.
#[derive(Clone, Copy)]
enum Format {
    Fxsave,
    Xsave,
}

impl Extended {
    /// Allocates room for it.
    pub(crate) fn new() -> Result<Self> {
        let mut state = Extended {
            fpu: bindings::fpu_guest::default(),
            pkru: 0,
            memory: 0,
            buffer: KVVec::new(),
            in_use: false,
        };
        // SAFETY: `fpu` is not in use. If this succeeds, `drop()` frees what it has now.
        if !unsafe { bindings::process_vm_exec_alloc_fpu(&mut state.fpu) } {
            return Err(ENOMEM);
        }
        state
            .buffer
            .extend_with(state.fpu.uabi_size as usize, 0, GFP_KERNEL_ACCOUNT)?;
        Ok(state)
    }

    /// Makes it what the code in `memory` has left, or what a processor has that has just been
    /// initialised.
    pub(crate) fn keep_or_reset(&mut self, memory: u64) -> Result {
        if self.memory == memory {
            return Ok(());
        }
        self.buffer.fill(0);
        self.put(CONTROL_WORD, &CONTROL_WORD_INITIAL.to_ne_bytes());
        self.put(MXCSR, &MXCSR_INITIAL.to_ne_bytes());
        self.put(HEADER, &X87_AND_SSE.to_ne_bytes());
        self.load_buffer()?;
        // What a new program has. SAFETY: This reads a setting.
        self.pkru = unsafe { bindings::process_vm_exec_initial_pkru() };
        self.memory = memory;
        Ok(())
    }

    /// Reads user space's area into it, for the code in `memory`.
    pub(crate) fn load(&mut self, from: *const u8, memory: u64) -> Result {
        // What was here is lost even if this fails half-way.
        self.memory = 0;
        self.buffer.fill(0);
        user::read_bytes(from, &mut self.buffer[..FXSAVE])?;
        match self.format()? {
            Format::Fxsave => self.put(HEADER, &X87_AND_SSE.to_ne_bytes()),
            Format::Xsave => {
                let mut magic = [0; MAGIC2_LEN];
                user::read_bytes(
                    from.wrapping_add(self.u32_at(SOFTWARE_XSTATE_SIZE) as usize),
                    &mut magic,
                )?;
                if u32::from_ne_bytes(magic) != bindings::FP_XSTATE_MAGIC2 {
                    return Err(EINVAL);
                }
                user::read_bytes(
                    from.wrapping_add(FXSAVE),
                    &mut self.buffer[FXSAVE..xstate_size()],
                )?;
            }
        }
        self.load_buffer()?;
        self.memory = memory;
        Ok(())
    }

    /// Writes it into user space's area, in the form that this has.
    pub(crate) fn store(&mut self, to: *mut u8) -> Result {
        user::read_bytes(to, &mut self.buffer[..FXSAVE])?;
        let format = self.format()?;
        // SAFETY: The state is not in use, and the buffer is as long as is said.
        unsafe {
            bindings::fpu_copy_guest_fpstate_to_uabi(
                &mut self.fpu,
                self.buffer.as_mut_ptr().cast(),
                self.fpu.uabi_size,
                u64::MAX,
                self.pkru,
            );
        }
        user::write_bytes(to, &self.buffer[..SOFTWARE])?;
        if let Format::Xsave = format {
            // As in signal frames, so that a program that knows nothing of the header can change
            // these registers.
            self.buffer[HEADER] |= X87_AND_SSE as u8;
            user::write_bytes(to.wrapping_add(FXSAVE), &self.buffer[FXSAVE..xstate_size()])?;
        }
        Ok(())
    }

    /// Exchanges the processor's state, which is the caller's, for this.
    pub(crate) fn enter(&mut self) {
        // SAFETY: `fpu` has been allocated, and is not in use.
        unsafe { bindings::fpu_swap_kvm_fpstate(&mut self.fpu, true) };
        self.in_use = true;
    }

    /// Reverses [`Extended::enter`].
    pub(crate) fn leave(&mut self) {
        // SAFETY: `fpu` is in use.
        unsafe { bindings::fpu_swap_kvm_fpstate(&mut self.fpu, false) };
        self.in_use = false;
    }

    fn load_buffer(&mut self) -> Result {
        // A component that is not in the area is in its initial state, in which all keys give all
        // rights.
        self.pkru = 0;
        // SAFETY: The state is not in use, and the buffer is as long as the largest area.
        let error = unsafe {
            bindings::fpu_copy_uabi_to_guest_fpstate(
                &mut self.fpu,
                self.buffer.as_ptr().cast(),
                u64::MAX,
                &mut self.pkru,
            )
        };
        kernel::error::to_result(error)
    }

    /// The form of the area whose first part is in the buffer.
    fn format(&self) -> Result<Format> {
        if self.u32_at(SOFTWARE) != bindings::FP_XSTATE_MAGIC1 {
            return Ok(Format::Fxsave);
        }
        // SAFETY: This reads what kind of processor this is.
        let max = unsafe { bindings::process_vm_exec_xstate_max() } as usize;
        if xstate_size() <= HEADER {
            return Err(eopnotsupp());
        }
        if !(xstate_size()..=max).contains(&(self.u32_at(SOFTWARE_XSTATE_SIZE) as usize)) {
            return Err(EINVAL);
        }
        Ok(Format::Xsave)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32_at(&self, at: usize) -> u32 {
        let bytes = &self.buffer[at..at + 4];
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Drop for Extended {
    fn drop(&mut self) {
        if self.in_use {
            self.leave();
        }
        // SAFETY: `fpu` is not in use, and nobody has another pointer to what it has. Having
        // nothing is fine.
        unsafe { bindings::fpu_free_guest_fpstate(&mut self.fpu) };
    }
}

/// Bytes of an area with everything that a task has without asking for it.
fn xstate_size() -> usize {
    // SAFETY: This reads what kind of processor this is.
    unsafe { bindings::process_vm_exec_xstate_size() as usize }
}
