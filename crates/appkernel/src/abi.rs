//! The shapes in which Linux passes values: registers as C integers, and records in guest memory.

use process_vm_exec::Errno;

/// The six argument registers of a system call.
pub(crate) type Args = [u64; 6];

/// What a system call returns.
pub(crate) type Answer = Result<u64, Errno>;

/// The size of a page.
pub(crate) const PAGE: u64 = 4096;

/// An argument register as a C `int`: the upper half does not count.
#[expect(clippy::cast_possible_truncation, reason = "a C int is the lower half of its register")]
pub(crate) const fn int(register: u64) -> i32 {
    (register as u32).cast_signed()
}

/// An argument register as a C `unsigned int`.
#[expect(clippy::cast_possible_truncation, reason = "a C int is the lower half of its register")]
pub(crate) const fn uint(register: u64) -> u32 {
    register as u32
}

/// An argument register as a C `unsigned short`.
#[expect(clippy::cast_possible_truncation, reason = "a C short is the lowest quarter of its register")]
pub(crate) const fn ushort(register: u64) -> u16 {
    register as u16
}

/// An argument register as a C `long`.
pub(crate) const fn long(register: u64) -> i64 {
    register.cast_signed()
}

/// A C `long` as the value of a register.
pub(crate) const fn from_long(value: i64) -> u64 {
    value.cast_unsigned()
}

/// A C `int` as the value of a register, sign extended.
pub(crate) const fn from_int(value: i32) -> u64 {
    (value as i64).cast_unsigned()
}

/// An argument register as a size in this process's memory; both are 64 bits wide.
#[expect(clippy::cast_possible_truncation, reason = "this crate is for 64-bit machines")]
pub(crate) const fn size(register: u64) -> usize {
    register as usize
}

/// An errno of `nix`, as everybody else calls it.
pub(crate) fn errno(error: nix::Error) -> Errno {
    Errno::from_raw_os_error(error as i32)
}

/// The start of the page that `addr` is in.
pub(crate) const fn page_down(addr: u64) -> u64 {
    addr & !(PAGE - 1)
}

/// The first page boundary at or above `addr`, unless there is none.
pub(crate) const fn page_up(addr: u64) -> Option<u64> {
    match addr.checked_add(PAGE - 1) {
        Some(end) => Some(page_down(end)),
        None => None,
    }
}

/// A C structure on its way to the guest: `N` bytes, zero where nothing is put.
#[derive(Debug)]
pub(crate) struct Record<const N: usize>([u8; N]);

impl<const N: usize> Record<N> {
    pub(crate) const fn new() -> Self {
        Self([0; N])
    }

    /// Puts the bytes of one field at its offset.
    pub(crate) fn put<const M: usize>(mut self, offset: usize, field: [u8; M]) -> Self {
        self.0[offset..offset + M].copy_from_slice(&field);
        self
    }

    pub(crate) const fn bytes(&self) -> &[u8; N] {
        &self.0
    }
}

/// The `M` bytes of the field at `offset` of a record that came from the guest.
pub(crate) fn field<const M: usize>(record: &[u8], offset: usize) -> [u8; M] {
    let mut bytes = [0; M];
    bytes.copy_from_slice(&record[offset..offset + M]);
    bytes
}

/// The `u64` at `offset` of a record.
pub(crate) fn u64_at(record: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(field(record, offset))
}

/// The `i64` at `offset` of a record.
pub(crate) fn i64_at(record: &[u8], offset: usize) -> i64 {
    i64::from_ne_bytes(field(record, offset))
}

/// The `u32` at `offset` of a record.
pub(crate) fn u32_at(record: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(field(record, offset))
}
