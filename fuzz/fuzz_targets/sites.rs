//! The recogniser of call sites and the writer of stubs: a patch of the text and a stub for it, or neither.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use process_vm_exec::{Registers, fuzzing};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    offset: u8,
    registers: [u64; 8],
    text: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let [rax, rdi, rsi, rdx, rbx, rbp, r8, r9] = input.registers;
    let registers = Registers { rax, rdi, rsi, rdx, rbx, rbp, r8, r9, ..Registers::default() };
    // A `syscall` where one has to be: else most inputs end at once.
    let mut text = input.text.to_vec();
    let end = usize::from(input.offset);
    if let Some(syscall) = end.checked_sub(2).and_then(|start| text.get_mut(start..end)) {
        syscall.copy_from_slice(&[0x0f, 0x05]);
    }
    fuzzing::rewrite_site(&text, u16::from(input.offset), &registers);
});
