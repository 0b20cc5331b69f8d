//! The structures of `pvx.h`.

use std::ffi::c_int;
use std::time::Duration;

use process_vm_exec::rewriting::{self, Plan};
use process_vm_exec::{
    Access, AddressSpaceBuilder, Arch, Engine, Errno, Exit, Registers, Rewriting, ServiceCalls, Syscall,
    WaitStatus,
};

use super::failure::{Failure, Outcome};
use crate::abi::fault_info;

/// `struct pvx_options`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Options {
    pub(super) size: usize,
    engine: u32,
    flags: u32,
    region: u64,
    spin_ns: u64,
    time_limit_ns: u64,
}

const ENGINE_BEST: u32 = 0;
const ENGINE_TRAP: u32 = 1;
const ENGINE_REWRITE: u32 = 2;
const NO_REWRITING: u32 = 1;
const ALL_CALLS: u32 = 2;
const PLANNED_REWRITING: u32 = 4;
const NO_SPINNING: u64 = u64::MAX;

impl Options {
    /// What to build.
    pub(super) fn builder(&self) -> Outcome<AddressSpaceBuilder> {
        let invalid = |words| Err(Failure::Caller(Errno::INVAL, words));
        let engine = match self.engine {
            // Plans are for this one alone.
            ENGINE_BEST if self.flags & PLANNED_REWRITING != 0 => Engine::Rewrite,
            ENGINE_BEST => best_engine()?,
            ENGINE_TRAP => Engine::Trap,
            ENGINE_REWRITE => Engine::Rewrite,
            _ => {
                return invalid(
                    "the engine is none of PVX_ENGINE_BEST, PVX_ENGINE_TRAP and PVX_ENGINE_REWRITE",
                );
            }
        };
        if self.flags & !(NO_REWRITING | ALL_CALLS | PLANNED_REWRITING) != 0 {
            return invalid(
                "the flags are others than PVX_NO_REWRITING, PVX_ALL_CALLS and PVX_PLANNED_REWRITING",
            );
        }
        let is_set = |flag| self.flags & flag != 0;
        let rewriting = match (is_set(NO_REWRITING), is_set(PLANNED_REWRITING)) {
            (true, true) => return invalid("PVX_NO_REWRITING and PVX_PLANNED_REWRITING exclude each other"),
            (true, false) => Rewriting::Off,
            (false, true) => Rewriting::Planned,
            (false, false) => Rewriting::On,
        };
        let mut builder = AddressSpaceBuilder::default()
            .engine(engine)
            .rewriting(rewriting)
            .service_calls(if is_set(ALL_CALLS) { ServiceCalls::All } else { ServiceCalls::Memory });
        if self.region != 0 {
            builder = builder.region(self.region);
        }
        if self.spin_ns != 0 {
            builder = builder.spin_budget_ns(if self.spin_ns == NO_SPINNING { 0 } else { self.spin_ns });
        }
        if self.time_limit_ns != 0 {
            builder = builder.time_limit(Duration::from_nanos(self.time_limit_ns));
        }
        Ok(builder)
    }
}

/// The best of those that any thread may use at any time, or the one of these that the environment names.
fn best_engine() -> Outcome<Engine> {
    let detection = Engine::detect()?;
    if let engine @ (Engine::Trap | Engine::Rewrite) = detection.best {
        return Ok(engine);
    }
    let works = |wanted: Engine| detection.engines.contains(&(wanted, None));
    Ok(if works(Engine::Rewrite) { Engine::Rewrite } else { Engine::Trap })
}

/// `struct pvx_change`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Change {
    pub(super) kind: u32,
    pub(super) protection: i32,
    pub(super) flags: i32,
    pub(super) file: i32,
    pub(super) address: u64,
    pub(super) length: u64,
    pub(super) offset: u64,
    pub(super) result: i64,
}

pub(super) const MAP: u32 = 0;
pub(super) const UNMAP: u32 = 1;
pub(super) const PROTECT: u32 = 2;
pub(super) const ANONYMOUS: c_int = -1;

/// As many bytes as a plan changes at most.
const LONGEST_CHANGE: usize = 8;
/// As many bytes as a stub may have.
const LONGEST_STUB: usize = 128;

/// `struct pvx_plan`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct CPlan {
    site: u64,
    address: u64,
    stub: u64,
    length: u32,
    stub_length: u32,
    apply: [[u8; LONGEST_CHANGE]; 3],
    undo: [[u8; LONGEST_CHANGE]; 3],
    stub_bytes: [u8; LONGEST_STUB],
}

impl TryFrom<&Plan> for CPlan {
    type Error = Failure;

    fn try_from(plan: &Plan) -> Outcome<Self> {
        let (range, stub) = (plan.range(), plan.stub());
        let mut stub_bytes = [0; LONGEST_STUB];
        let too_long = Failure::Caller(Errno::NOBUFS, "the stub is longer than a plan has room for");
        stub_bytes.get_mut(..stub.bytes.len()).ok_or(too_long)?.copy_from_slice(&stub.bytes);
        // All the bytes after each step, those included that it leaves as they are.
        let steps = |present: &[u8], change: rewriting::Change<'_>| {
            let mut bytes = [0; LONGEST_CHANGE];
            bytes[..present.len()].copy_from_slice(present);
            change.steps().map(|writes| {
                for write in writes {
                    let at = usize::try_from(write.at - range.start).expect("an address of the change");
                    bytes[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
                }
                bytes
            })
        };
        Ok(Self {
            site: plan.site(),
            address: range.start,
            stub: stub.at,
            length: u32::try_from(range.end - range.start).expect("a few bytes"),
            stub_length: u32::try_from(stub.bytes.len()).expect("it has been copied"),
            apply: steps(plan.original(), plan.change()),
            undo: steps(plan.replacement(), plan.undo()),
            stub_bytes,
        })
    }
}

/// `struct pvx_registers`, which has the library's own order.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct CRegisters(Registers);

impl From<&Registers> for CRegisters {
    fn from(registers: &Registers) -> Self {
        Self(*registers)
    }
}

impl CRegisters {
    /// The registers, with the usual segments where there are none.
    pub(super) fn registers(&self) -> Registers {
        let usual = Registers::default();
        let or = |selector, usual| if selector == 0 { usual } else { selector };
        Registers { cs: or(self.0.cs, usual.cs), ss: or(self.0.ss, usual.ss), ..self.0 }
    }
}

/// `struct pvx_exit`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct CExit {
    kind: i32,
    arch: i32,
    number: u64,
    arguments: [u64; 6],
    access: i32,
    trap: u32,
    error_code: u32,
    status: i32,
    address: u64,
    rewritten: i32,
    _reserved: i32,
    info: [u64; 16],
}

impl CExit {
    /// Stores what the exit has to say, and nothing else. `syscall` is the context's; it came from a rewritten site, or not.
    pub(super) fn store(&mut self, exit: &Exit, syscall: &Syscall, is_rewritten: bool) {
        match exit {
            Exit::Syscall => {
                self.kind = 0;
                self.arch = match syscall.arch {
                    Arch::X86_64 => 0,
                    Arch::I386 => 1,
                };
                (self.number, self.arguments) = (syscall.nr, syscall.args);
                self.rewritten = is_rewritten.into();
            }
            Exit::Fault(fault) => {
                self.kind = 1;
                self.access = match fault.access {
                    None => 0,
                    Some(Access::Read) => 1,
                    Some(Access::Write) => 2,
                    Some(Access::Execute) => 3,
                };
                (self.trap, self.error_code, self.address) = (fault.trapno, fault.error_code, fault.addr);
                self.info = words(fault_info(fault).as_bytes());
            }
            Exit::Signal(info) => {
                self.kind = 2;
                self.info = words(info.as_bytes());
            }
            Exit::Interrupted => self.kind = 3,
            Exit::Died(status) => {
                self.kind = 4;
                self.status = match *status {
                    WaitStatus::Exited(status) => (status & 0xff) << 8,
                    WaitStatus::Signaled(signal) => signal & 0x7f,
                };
            }
        }
    }
}

fn words(bytes: &[u8; 128]) -> [u64; 16] {
    let mut words = [0; 16];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_long_as_in_c() {
        assert_eq!(size_of::<Options>(), 40);
        assert_eq!(size_of::<Change>(), 48);
        assert_eq!(size_of::<CRegisters>(), 22 * 8);
        assert_eq!((size_of::<CExit>(), std::mem::offset_of!(CExit, info)), (224, 96));
        assert_eq!((size_of::<CPlan>(), std::mem::offset_of!(CPlan, stub_bytes)), (208, 80));
    }
}
