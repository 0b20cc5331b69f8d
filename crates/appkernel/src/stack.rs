//! The stack a program starts with: arguments, environment and auxiliary vector
//! (System V ABI for AMD64, "Process Initialization"; Linux fs/binfmt_elf.c, `create_elf_tables`).

use std::ffi::CString;

/// What goes on a new stack.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    pub(crate) args: &'a [CString],
    pub(crate) env: &'a [CString],
    /// The path by which the program was started (`AT_EXECFN`).
    pub(crate) execfn: &'a [u8],
    /// The auxiliary vector but for its pointers into this stack.
    pub(crate) auxv: Vec<(u64, u64)>,
    /// 16 random bytes (`AT_RANDOM`).
    pub(crate) random: [u8; 16],
}

/// A stack ready to be written to the guest.
#[derive(Debug)]
pub(crate) struct Stack {
    /// The stack pointer to start with, where `bytes` go.
    pub(crate) pointer: u64,
    pub(crate) bytes: Vec<u8>,
    /// The auxiliary vector as it was written.
    pub(crate) auxv: Vec<u8>,
}

impl Stack {
    /// Lays out `contents` so that they end at `top`, which is 16-byte aligned.
    pub(crate) fn build(top: u64, contents: Contents<'_>) -> Self {
        let mut strings = Strings { top, bytes: Vec::new() };
        let execfn = strings.push(contents.execfn);
        let env: Vec<u64> = contents.env.iter().rev().map(|string| strings.push(string.to_bytes())).collect();
        let args: Vec<u64> =
            contents.args.iter().rev().map(|string| strings.push(string.to_bytes())).collect();
        let platform = strings.push(b"x86_64");
        let random = strings.push_raw(&contents.random);

        let mut auxv = contents.auxv;
        auxv.push((libc::AT_RANDOM, random));
        auxv.push((libc::AT_PLATFORM, platform));
        auxv.push((libc::AT_EXECFN, execfn));
        auxv.push((libc::AT_NULL, 0));
        let auxv: Vec<u8> =
            auxv.iter().flat_map(|(key, value)| [key.to_ne_bytes(), value.to_ne_bytes()].concat()).collect();

        let mut bytes = Vec::new();
        bytes.extend((args.len() as u64).to_ne_bytes());
        for list in [&args, &env] {
            bytes.extend(list.iter().rev().flat_map(|pointer| pointer.to_ne_bytes()));
            bytes.extend(0u64.to_ne_bytes());
        }
        bytes.extend(&auxv);
        let strings_start = top - strings.bytes.len() as u64;
        let pointer = (strings_start - bytes.len() as u64) & !15;
        bytes.resize(bytes.len() + crate::abi::size(strings_start - pointer - bytes.len() as u64), 0);
        strings.bytes.reverse();
        bytes.extend(strings.bytes);
        Self { pointer, bytes, auxv }
    }
}

/// Strings growing down from the top; the bytes are kept in reverse.
struct Strings {
    top: u64,
    bytes: Vec<u8>,
}

impl Strings {
    fn push(&mut self, string: &[u8]) -> u64 {
        self.bytes.push(0);
        self.push_raw(string)
    }

    fn push_raw(&mut self, string: &[u8]) -> u64 {
        self.bytes.extend(string.iter().rev());
        self.top - self.bytes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::u64_at;

    #[test]
    fn a_stack_is_aligned_and_its_pointers_lead_to_their_strings() {
        let args = [CString::new("ls").unwrap(), CString::new("-l").unwrap()];
        let env = [CString::new("A=B").unwrap()];
        let top = 0x7fff_0000;
        let contents =
            Contents { args: &args, env: &env, execfn: b"/bin/ls", auxv: vec![(6, 4096)], random: [7; 16] };
        let stack = Stack::build(top, contents);
        assert_eq!(stack.pointer % 16, 0);
        assert_eq!(stack.pointer + stack.bytes.len() as u64, top);
        let string = |slot: usize| {
            let start = usize::try_from(u64_at(&stack.bytes, slot * 8) - stack.pointer).unwrap();
            let len = stack.bytes[start..].iter().position(|&byte| byte == 0).unwrap();
            stack.bytes[start..start + len].to_vec()
        };
        assert_eq!(u64_at(&stack.bytes, 0), 2);
        assert_eq!(string(1), b"ls");
        assert_eq!(string(2), b"-l");
        assert_eq!(u64_at(&stack.bytes, 24), 0);
        assert_eq!(string(4), b"A=B");
        assert_eq!(u64_at(&stack.bytes, 40), 0);
        assert_eq!(u64_at(&stack.bytes, 48), 6);
    }
}
